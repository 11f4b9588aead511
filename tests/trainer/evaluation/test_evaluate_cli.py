"""`evaluate --layers` and `--replace` as commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.analysis_models import M, record, write
from tests.support.tiny_runs import World, tiny_recipe
from trainer.training.run import train

pytestmark = pytest.mark.slow


@pytest.fixture
def evaluate(command: Any, tiny: World) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object, model: Path = tiny.model, data: Path = tiny.data) -> tuple[int, str, str]:
        images = tiny.data.parent / "images"
        code, stdout, stderr = command("evaluate", model, "--data", data, "--image-root", images, *arguments)
        return code, stdout, stderr.replace("\n", " ")

    return run


def test_the_command_writes_what_it_finds(evaluate: Any, tiny: World, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "found.json"
    analyses = ["--layers", "--replace", "--new-tokens", 4, "--labels", tiny.labels]
    code, plain, stderr = evaluate("--json", "--labels", tiny.labels, data=mixed)
    assert code == 0, stderr
    code, stdout, stderr = evaluate("--json", *analyses, "--out", out, data=mixed)
    assert code == 0, stderr
    found, written = json.loads(stdout), json.loads(out.read_text("utf-8"))
    assert list(out.parent.iterdir()) == [out]
    layers, replace = found.pop("layers"), found.pop("replace")
    assert found == json.loads(plain)
    texts = replace.pop("texts")
    images = written.pop("images")
    assert written == {"model": str(tiny.model), "data": str(mixed), "layers": layers, "replace": replace}
    assert [one["layer"] for one in layers] == [0, 1, 2]
    assert {"meaningful", "meaningful_chance", "special", "distinct_tokens", "frequent"} < set(layers[0])
    shown = [("one", "00.png"), ("two", "01.png"), ("two", "03.png"), ("again", "04.png")]
    assert [(one["sample"], one["image"]) for one in images] == shown
    for image, text in zip(images, texts, strict=True):
        assert image["grid"] == [4, 4]
        assert [len(layer) for layer in image["tokens"]] == [M, M, M]
        assert all(isinstance(token, str) for layer in image["tokens"] for token in layer)
        assert {"image": image["image"], "sample": image["sample"], **image["generated"]} == text
        assert set(image["generated"]) == {"visual", "replaced", "control", "control_of"}


def test_images_of_both_analyses_are_the_first_ones(evaluate: Any, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    lengths = {}
    for arguments, new_tokens, tokens, generated in (
        (["--layers", "--replace"], 1, 11, 8),
        (["--layers"], 1, 11, 0),
        (["--layers", "--replace", "--limit-images", 2], 1, 2, 2),
        (["--replace", "--limit-images", 10], 6, 0, 10),
    ):
        described = ["--new-tokens", new_tokens] if generated else []
        code, _, stderr = evaluate(*arguments, *described, "--out", out)
        assert code == 0, stderr
        images = json.loads(out.read_text())["images"]
        assert len(images) == max(tokens, generated)
        assert ["tokens" in image for image in images] == [place < tokens for place in range(len(images))]
        assert ["generated" in image for image in images] == [place < generated for place in range(len(images))]
        lengths |= {new_tokens: len(images[0]["generated"]["replaced"])} if generated else {}
    assert lengths[1] < lengths[6], "a text may be as long as asked for"


def test_the_command_shows_tables(evaluate: Any, mixed: Path) -> None:
    code, stdout, stderr = evaluate("--layers", "--replace", "--new-tokens", 3, "--limit-images", 3, data=mixed)
    assert code == 0, stderr
    lines = stdout.splitlines()
    heading = next(line.split() for line in lines if "most frequent" in line)
    assert heading == ["layer", "special", "distinct", "most", "frequent"], "no labels, no meaningful"
    assert [line.split()[0] for line in lines if line.rstrip().endswith("%")] == ["0", "1", "2"]
    assert "own image" in stdout
    assert "00.png; control: the replaced tokens of 01.png" in lines
    _, plain, _ = evaluate(data=mixed)
    assert stdout.startswith(plain)
    assert "layer" not in plain


def test_the_command_looks_through_the_contextual_lens(evaluate: Any, tiny: World, mixed: Path, tmp_path: Path) -> None:
    """Of the sentences of a file without photos, and of what a run of the model was trained on."""
    elsewhere = write(tmp_path / "captions.json", [record("a", ["gone.png"], "What?", "It is a red patch.")])
    given = ["--lens", "contextual", "--lens-data", elsewhere]
    code, plain, _ = evaluate("--json", "--labels", tiny.labels, data=mixed)
    code, stdout, stderr = evaluate("--json", *given, "--labels", tiny.labels, "--limit-images", 3, data=mixed)
    assert code == 0, stderr
    found = json.loads(stdout)
    lens = found.pop("lens")
    assert found == json.loads(plain)
    assert (lens["data"], lens["photos"]) == (str(elsewhere), 3)
    assert (lens["index"]["layers"], lens["index"]["words"]) == ([0, 1], 2)
    assert [layer["layer"] for layer in lens["layers"]] == [0, 1, 2]
    lenses, found_of = ("contextual", "contextual_label", "word", "word_label"), set(lens["layers"][0])
    for what in ("share", "share_se", "share_other", "gain", "gain_se"):
        assert {f"{name}_{what}" for name in lenses} < found_of
    code, stdout, stderr = evaluate(*given, data=mixed)
    assert code == 0, stderr
    assert "contextual" in stdout
    assert "in 1 sentences of" in " ".join(stdout.split())
    run = tmp_path / "run"
    train(tiny_recipe(tiny, data={"held_out": 2}, training_arguments={"max_steps": 1}), run)
    code, stdout, stderr = evaluate("--json", "--lens", "contextual", model=run / "model", data=mixed)
    assert code == 0, stderr
    lens = json.loads(stdout)["lens"]
    assert lens["data"] == str(tiny.data)
    assert lens["index"]["texts"] == 10, "of twelve samples two are held out"
    record_file = run / "run.json"
    record_file.write_text(record_file.read_text().replace(str(tiny.data), str(tmp_path / "moved.json")))
    code, _, stderr = evaluate("--lens", "contextual", model=run / "model", data=mixed)
    assert code == 1
    assert "which is not there; name a LLaVA file with --lens-data" in stderr


def test_a_place_for_what_is_found_that_does_not_fit_is_one_line(evaluate: Any, tiny: World, tmp_path: Path) -> None:
    """It is told before anything else is looked at; what is wrong without it, in `tests/cli/test_needs.py`."""
    text = write(tmp_path / "text.json", [record("text", [], "Which colour?", "red")])
    for arguments, said in (
        (["--layers", "--out", tiny.data / "x.json"], "cannot be written"),
        (["--layers", "--out", text, "--questions", text], "which the command reads; name a file elsewhere"),
        (["--layers", "--out", text], "found one that the command did not write"),
        (["--layers", "--save-figures", text], "expected a folder to write to; found a file"),
    ):
        code, stdout, stderr = evaluate(*arguments, model=tmp_path / "nowhere")
        assert (code, stdout) == (1, "")
        assert said in stderr
        assert "Traceback" not in stderr
