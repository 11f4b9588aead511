"""The drawings of docs/: light and dark, of what is there."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import typer.main

from sea_pipeline import open_labels
from sea_pipeline.cli import app
from tests.pictures import bars, diagrams, lens
from tests.support.paths import ROOT
from tests.support.world import draw_folder

SVG = "{http://www.w3.org/2000/svg}"


def test_the_diagram_shows_every_command() -> None:
    commands = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
    assert set(diagrams.named_commands()) == set(commands) - {"demo"}


def test_diagrams(label: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label(images=str(draw_folder(tmp_path / "photos", 1)))  # type: ignore[operator]
    words = open_labels(tmp_path / "labels").words
    random = np.random.default_rng(0)
    ids = np.stack([random.permutation(len(words))[:3] for _ in range(64)]).astype(np.int32)
    excerpt = diagrams.Excerpt("data:image/webp;base64,", ids, random.random((64, 3)).astype(np.float32))
    monkeypatch.setattr(diagrams, "_excerpt", lambda store: excerpt)
    files = diagrams.draw(tmp_path / "labels", tmp_path)
    assert {file.stem for file in files} == {
        f"{name}-{of}" for name in ("sea", "recipe", "commands") for of in ("light", "dark")
    }
    for file in files:
        root = ET.parse(file).getroot()
        width = float(root.attrib["width"])
        assert root.find(f"{SVG}title") is not None
        for box in root.iter(f"{SVG}rect"):
            assert 0 <= float(box.attrib["x"]) <= float(box.attrib["x"]) + float(box.attrib["width"]) <= width, file
    light, dark = ((tmp_path / f"sea-{of}.svg").read_text() for of in ("light", "dark"))
    assert set(re.findall("#[0-9a-f]{6}", light)) & set(re.findall("#[0-9a-f]{6}", dark)) <= {"#ffb300"}


def test_bars(tmp_path: Path) -> None:
    found = [
        {"row": row, "seed": seed, "right_photo_gain": gain + 0.01 * seed}
        for row, gain in (("lm", 0.4), ("sea", 0.5))
        for seed in (0, 1, 2)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    light, dark = bars.draw(tmp_path / "results.jsonl", "right_photo_gain", tmp_path)
    root = ET.parse(light).getroot()
    widths = [float(box.attrib["width"]) for box in root.iter(f"{SVG}rect")]
    assert widths[1] / widths[0] == pytest.approx(0.51 / 0.41, rel=1e-3)
    assert len(list(root.iter(f"{SVG}circle"))) == 6
    assert len(list(root.iter(f"{SVG}polyline"))) == 2
    assert dark.read_text() != light.read_text()


def test_a_lens_is_drawn_layer_by_layer(tmp_path: Path) -> None:
    files = {row: tmp_path / f"{row}.json" for row in ("lm", "sea-first")}
    for row, gain in zip(files, (0.1, 0.4), strict=True):
        layers = [
            {"layer": layer, "contextual_gain": gain * layer, "word_gain": gain * layer}
            | {"contextual_gain_se": 0.05, "word_gain_se": 0.05}
            for layer in range(3)
        ]
        files[row].write_text(json.dumps({"lens": {"layers": layers}}))
    light, _ = lens.draw(files, tmp_path)
    lines = [line.attrib["points"].split() for line in ET.parse(light).getroot().iter(f"{SVG}polyline")]
    paths = [[tuple(map(float, point.split(","))) for point in points] for points in lines if len(points) == 3]
    assert len(paths) == 4, "two rows in each of two panels"
    for low, high in (paths[:2], paths[2:]):
        assert high[0][1] - high[2][1] == pytest.approx(4 * (low[0][1] - low[2][1]), rel=1e-3)
    assert "SEA first, then L_lm" in light.read_text()


def test_what_pages_show_is_drawn_in_both_versions() -> None:
    names = {path.stem for path in (ROOT / "docs" / "pictures").iterdir()}
    assert {name.removesuffix("-light") for name in names if name.endswith("-light")} == {
        name.removesuffix("-dark") for name in names if name.endswith("-dark")
    }
