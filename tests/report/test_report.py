"""The report's file: what is in it, what is escaped, how large it is, and what it refuses; and figures."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT
from sea_pipeline.inputs.crops import WHOLE
from sea_pipeline.labels.statistics import image_words
from sea_pipeline.labels.store import Labels, LabelStore, open_labels
from sea_pipeline.report.figures import FIGURE, Panel, labels_figure, patches_figure, photo_of, save_figure
from sea_pipeline.report.labels import NONE, labels_data
from sea_pipeline.report.packing import BUDGET, narrow, packed, thumbnail
from sea_pipeline.report.page import json_text, render
from sea_pipeline.report.run import ReportSettings, find_inputs, write_report
from sea_pipeline.report.runs import MOST_POINTS, kept_views, runs_data
from sea_pipeline.report.settings import MOST_PHOTOS
from sea_pipeline.storage.results import check_result
from tests.support.heard import Heard
from tests.support.refused import refuses
from tests.support.report_world import opened_runs, planted_views, run_folder
from tests.support.world import Label, draw, draw_folder


def unpack(values: dict[str, str]) -> npt.NDArray[Any]:
    dtype = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}[values["type"]]
    return np.frombuffer(base64.b64decode(values["data"]), dtype)


def embedded(file: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.fixture
def store(label: Label, tmp_path: Path) -> LabelStore:
    """Labels of five photos."""
    return open_labels(label(images=str(draw_folder(tmp_path / "photos", 5))).ledger.root)


@pytest.mark.parametrize("most", [2, None])
def test_words_and_scores_are_those_of_the_store(store: LabelStore, most: int | None) -> None:
    """All words of a patch, or the best ones; scores with the two digits that the page shows."""
    data = labels_data(store, None, most, 64, SILENT)
    kept = most or store.top_n
    assert data["kept"] == kept
    assert [photo["id"] for photo in data["photos"]] == store.ids
    ids = unpack(data["word_ids"]).reshape(5, 12, kept)
    marks = unpack(data["scores"]).reshape(5, 12, kept)
    for photo, image_id in enumerate(store.ids):
        wanted = store[image_id]
        words = [[data["words"][place] if place != NONE else None for place in patch] for patch in ids[photo].tolist()]
        assert words == [[store.words[word] if word >= 0 else None for word in row[:kept]] for row in wanted.word_ids]
        for word, mark, score in zip(ids[photo].flat, marks[photo].flat, wanted.scores[:, :kept].flat, strict=True):
            assert f"{(mark - 1) / 100:.2f}" == (f"{score:.2f}" if word != NONE else "-0.01")
        if most is None:
            best = [store.words[word] for word, _ in image_words(wanted)]
            assert [data["words"][place] for place in data["best"][photo]] == best
    assert data["statistics"]["images"] == 5
    assert sum(data["statistics"]["mean_histogram"]["counts"]) == len(store.words)


def test_limit_leaves_out_photos_and_says_how_many_there_are(store: LabelStore) -> None:
    heard = Heard()
    data = labels_data(store, 3, 5, 64, heard)
    assert [photo["id"] for photo in data["photos"]] == store.ids[:3]
    assert data["total"] == data["statistics"]["images"] == 5
    assert heard.lines == [f"{store.path}: the report shows the first 3 of 5 photos; --limit shows another number"]
    labels_data(store, 5, 5, 64, heard)
    assert len(heard.lines) == 1, "that is all of them"


def test_a_large_folder_is_cut_without_being_asked(
    command: Any, label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default makes a file that browsers open, and the command says how much of the folder is in it."""
    assert ReportSettings().limit == MOST_PHOTOS
    assert MOST_PHOTOS * BUDGET < 100_000_000
    out = label(images=str(draw_folder(tmp_path / "photos", 5)), crops=1).ledger.root
    monkeypatch.setattr(ReportSettings.model_fields["limit"], "default", 4)
    ReportSettings.model_rebuild(force=True)
    try:
        code, stdout, stderr = command("report", out, "--out", tmp_path / "r.html")
    finally:
        monkeypatch.undo()
        ReportSettings.model_rebuild(force=True)
    assert code == 0, stderr
    assert "shows the first 4 of 5 photos; --limit shows another number" in " ".join((stdout + stderr).split())
    assert "4 photos" in stdout


def test_crops_are_no_photos(label: Label, tmp_path: Path) -> None:
    store = open_labels(label(images=str(draw_folder(tmp_path / "photos", 3)), crops=2).ledger.root)
    data = labels_data(store, None, 5, 64, SILENT)
    assert len(data["photos"]) == 3
    assert (data["total"], data["statistics"]["images"]) == (3, 9)
    assert not any("#crop" in photo["id"] for photo in data["photos"])


def test_photos_that_are_gone_have_no_picture_and_the_report_is_made(
    command: Any, store: LabelStore, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "000.png").unlink()
    (tmp_path / "photos" / "003.png").write_bytes(b"no image")
    shutil.copyfile(tmp_path / "photos" / "a" / "001.png", tmp_path / "photos" / "b" / "002.png")
    code, stdout, stderr = command("report", store.path, "--out", tmp_path / "r.html")
    assert code == 0, stderr
    assert "5 photos, 3 of them gone" in stdout
    assert "1 of 5 photos below" in stderr, "another photo has its name"
    assert "are other files than the labelled ones (such as 'b/002.png'), and are left out" in stderr
    shown = {photo["id"]: photo["src"] for photo in embedded(tmp_path / "r.html")["labels"]["photos"]}
    assert [name for name, src in shown.items() if src is None] == ["000.png", "003.png", "b/002.png"]
    assert not (tmp_path / ".tmp").exists()


@pytest.mark.slow
def test_a_thumbnail_is_the_labelled_part_within_its_budget(tmp_path: Path) -> None:
    photo = Image.open(draw(tmp_path / "p.png", [["red", "blue"], ["red", "green"]], size=(400, 200)))
    src = thumbnail(lambda: photo, (0.5, 0.0, 1.0, 0.5), 100)
    assert src is not None
    (tmp_path / "t.webp").write_bytes(base64.b64decode(src.split(",")[1]))
    small = Image.open(tmp_path / "t.webp").convert("RGB")
    assert small.size == (100, 50)
    red, green, blue = small.getpixel((50, 25))  # type: ignore[misc]
    assert (red < 40, green < 40, blue > 200) == (True, True, True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    encoded = thumbnail(lambda: noise, (0, 0, 1, 1), 400)
    assert encoded is not None
    assert len(encoded) < BUDGET + 40


def test_json_ends_no_script_and_is_the_same_json() -> None:
    value = {"</script><!--": "<b>&amp;\u2028\u2029\x7f\x85 \U0001f600 \"quoted\" 'single'"}
    text = json_text(value)
    assert not set("<>&\u2028\u2029\x7f\x85") & set(text)
    assert json.loads(text) == value


def test_the_page_forbids_the_network_and_every_other_script() -> None:
    page = render({}, '"><script>alert(1)</script>\x85').decode()
    assert "<script>alert(1)" not in page
    assert "\x85" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;; img-src data:;")
    assert "unsafe" not in policy[1]
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", page.replace("http-equiv", ""))


def test_packing_is_little_endian() -> None:
    assert base64.b64decode(packed([1, 258], "u16")["data"]) == b"\x01\x00\x02\x01"
    assert (narrow(65_536), narrow(65_537)) == ("u16", "u32")


def test_runs_keep_curves_short_and_say_what_differs(tmp_path: Path) -> None:
    lines = [{"step": step, "seconds": 1.0, "loss": 1 / (step + 1)} for step in range(5 * MOST_POINTS)]
    run_folder(tmp_path / "a", lines=lines)
    run_folder(tmp_path / "b", lines=lines[:3], half='{"step": 4, "lo', loss={"sea": {"weight": 1.0}})
    _, runs = find_inputs([tmp_path / "a", tmp_path / "b"])
    data = runs_data(runs)
    long, short = (run["curves"]["loss"] for run in data["list"])
    assert len(long["steps"]) == MOST_POINTS
    assert long["steps"][:2] == [0, 5]
    assert short == {"steps": [0, 1, 2], "values": [1.0, 0.5, 0.333333]}
    assert [entry["key"] for entry in data["differences"]] == ["name", "loss.sea.weight"]


def seen(folder: Path, name: str, colour: str, **image: Any) -> Path:
    """A run that shows one photo of its own folder."""
    views = planted_views(folder)
    views["images"][0] |= {"image": name, "file": str(folder / name)} | image
    run = run_folder(folder / f"run-{len(list(folder.glob('run-*')))}", views=views)
    if not (folder / name).exists():
        Image.new("RGB", (60, 40), colour).save(folder / name, "PNG")
    return run


def middle(src: str | None) -> tuple[int, ...]:
    assert src is not None
    photo = Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))).convert("RGB")
    return tuple(photo.getpixel((photo.width // 2, photo.height // 2)))  # type: ignore[arg-type]


def test_each_run_is_on_the_photo_that_it_looked_at(tmp_path: Path) -> None:
    """Of one name in two data sets, in a copy, through another processor, and of a name like one that was made up."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    paths = [seen(folders[0], "0.png", "red"), seen(folders[1], "0.png", "blue")]
    paths.append(seen(folders[0], "0.png", "red", box=[0, -0.25, 1, 1.25]))
    shutil.copy(folders[0] / "0.png", folders[2] / "0.png")
    paths.append(seen(folders[2], "0.png", "red"))
    paths.append(seen(folders[2], "0.png (2)", "green"))
    data = runs_data(opened_runs(paths))
    shown = [next(iter(run["views"]["images"].items())) for run in data["list"]]
    assert [name for name, _ in shown] == ["0.png", "0.png (2)", "0.png", "0.png", "0.png (2) (2)"]
    colours = [middle(data["pictures"][image["picture"]]) for _, image in shown]
    assert [max(range(3), key=colour.__getitem__) for colour in colours] == [0, 2, 0, 0, 1]
    assert shown[0][1]["picture"] == shown[3][1]["picture"] != shown[2][1]["picture"]
    assert len(data["pictures"]) == 4
    assert {name: photo["picture"] for name, photo in data["photos"].items()} == {
        name: image["picture"] for name, image in reversed(shown)
    }


def test_stages_stand_for_their_folder(tmp_path: Path) -> None:
    run_folder(tmp_path / "both" / "z-first", age=9)
    run_folder(tmp_path / "both" / "a-then")
    _, runs = find_inputs([tmp_path / "both"])
    assert [run.name for run in runs] == ["both/z-first", "both/a-then"]


def test_what_is_no_labels_and_no_run_is_one_line(command: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    unfinished = run_folder(tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    damaged = run_folder(tmp_path / "damaged")
    (damaged / "run.json").write_text("{")
    for folder, said in (
        ("empty", "expected labels or a run"),
        ("nowhere", "expected labels or a run"),
        ("unfinished", "expected a finished run"),
        ("damaged", "run.json: cannot be read"),
    ):
        refuses(command, said, "report", tmp_path / folder, "--out", tmp_path / "new" / "r.html")
    assert not (tmp_path / "new").exists()


def test_labels_twice_and_a_folder_as_out_are_refused(store: LabelStore, tmp_path: Path) -> None:
    folder = Path(str(store.path))
    with pytest.raises(UserError, match="expected labels once"):
        find_inputs([folder, folder])
    _, runs = find_inputs([run_folder(tmp_path / "run")])
    for out in (tmp_path, folder / "words.txt", runs[0].path / "new.html"):
        with pytest.raises(UserError, match="expected a file to write; found a"):
            write_report(store, runs, ReportSettings(out=out), reporter=SILENT)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_is_checked_at_once(device: str, command: Any, store: LabelStore, tmp_path: Path) -> None:
    for folder in (store.path, run_folder(tmp_path / "run")):
        refuses(command, f"--device {device}: expected", "report", folder, "--device", device, "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_run_whose_model_is_gone_is_shown_with_the_views_that_it_has(command: Any, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", views={"key": "old"})
    code, stdout, stderr = command("report", run, "--out", tmp_path / "r.html")
    assert code == 0, stderr
    assert "shown as they were made" in stderr.replace("\n", " ")
    assert "1 run" in stdout
    (found,) = embedded(tmp_path / "r.html")["runs"]["list"]
    assert found["views"]["texts"] == kept_views(run)["texts"]  # type: ignore[index]
    (run / "views.json").unlink()
    assert command("report", run, "--out", tmp_path / "r.html")[0] == 0
    (found,) = embedded(tmp_path / "r.html")["runs"]["list"]
    assert found["views"] is None
    assert "model: there is no such folder" in found["note"]


def test_labels_of_bad_images_alone_are_a_report_of_them(command: Any, label: Label, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    out = label(images=str(tmp_path / "photos"), max_bad=1).ledger.root
    code, _, stderr = command("report", out, "--out", tmp_path / "r.html")
    assert code == 0, stderr
    data = embedded(tmp_path / "r.html")["labels"]
    assert (data["photos"], [bad["id"] for bad in data["quarantine"]]) == ([], ["bad.png"])


GRID = [["red", "red", "green", "green"], ["blue"] * 4, ["brown", "brown", "grey", "grey"]]
WHITE = Image.new("RGB", (64, 48), "white")


def texts(figure: Any) -> dict[tuple[float, float], str]:
    """What is written at which place, column and row."""
    return {text.get_position(): text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()}


def boxes(figure: Any) -> list[tuple[int, int]]:
    """The patches that are tinted or boxed, row and column."""
    return [(int(patch.get_y()), int(patch.get_x())) for axes in figure.axes for patch in axes.patches]


def test_words_stand_on_their_patches_and_one_word_has_one_colour() -> None:
    labels = Labels(np.array([[0], [0], [1], [-1]], np.int32), np.ones((4, 1), np.float32), (1, 4), (0, 0, 1, 1))
    figure = labels_figure(WHITE, labels, ("cat", "dog"))
    assert texts(figure) == {(0.5, 0.5): "cat", (1.5, 0.5): "cat", (2.5, 0.5): "dog"}
    assert boxes(figure) == [(0, 0), (0, 1), (0, 2)]
    colours = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert colours[0] == colours[1] != colours[2]


def test_hits_are_boxed_and_bold_and_misses_are_neither() -> None:
    panel = Panel("t", ["a", "b", "c", ""], ["hit", "miss", "none", "miss"])
    figure = patches_figure(WHITE, (0, 0, 1, 1), (2, 2), [panel, panel], 2)
    assert boxes(figure) == [(0, 0), (0, 0)]
    weights = [text.get_weight() for text in figure.axes[0].texts]
    assert weights == ["bold", "normal", "normal", "normal"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_figure_is_whole_and_its_text_is_text(tmp_path: Path, suffix: str) -> None:
    figure = patches_figure(WHITE, (0, 0, 1, 1), (1, 2), [Panel("$x_1$ and <b>", ["zebra $1", "a\nb"])], 1)
    path = tmp_path / "made" / f"figure{suffix}"
    save_figure(figure, path)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]
    if suffix == ".svg":
        assert all(text in path.read_text() for text in ("zebra $1", "&lt;b&gt;"))
    if suffix == ".pdf":
        assert path.read_bytes().startswith(b"%PDF")
        first = path.read_bytes()
        save_figure(figure, path)
        assert path.read_bytes() == first
        check_result(path, FIGURE, [])
    path.write_bytes(b"a photo")
    with pytest.raises(UserError, match="found one that the command did not write"):
        check_result(path, FIGURE, [])
    save_figure(figure, path)
    if suffix == ".png":
        with Image.open(path) as opened:
            assert opened.width > 100


def test_the_drawn_part_is_the_crop_box() -> None:
    photo = Image.new("RGB", (100, 50), "red")
    photo.paste("blue", (50, 0, 100, 50))
    figure = patches_figure(photo, (0.5, 0, 1, 1), (1, 1), [Panel("", [""])], 1)
    shown = figure.axes[0].images[0].get_array()
    assert shown.reshape(-1, 3).max(0).tolist() == [0, 0, 255]


@pytest.mark.slow
def test_inspect_saves_the_photo_and_figure_6(command: Any, label: Label, tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "x.png", GRID, size=(48, 48))
    labels = label(images=str(tmp_path / "photos")).ledger.root
    assert command("inspect", labels, "x.png", "--save", tmp_path / "x.svg")[0] == 0
    assert (tmp_path / "x.svg").read_text().count(">blue<") == 4
    assert command("inspect", labels, "--save", tmp_path / "six.pdf", "--json")[0] == 0
    assert (tmp_path / "six.pdf").is_file()
    photo = tmp_path / "photos" / "x.png"
    refuses(command, f"--save {photo}: expected a file to write; found one", "inspect", labels, "--save", photo)
    said = "ends in .png, .pdf, .svg; found '.docx'"
    refuses(command, said, "inspect", labels, "--save", tmp_path / "six.docx")
    refuses(command, ".svg; found no suffix\n", "inspect", labels, "--save", tmp_path / "six")


def test_a_long_title_is_folded_and_what_the_font_lacks_is_told(tmp_path: Path) -> None:
    title = " · ".join(["mackintosh"] * 9)
    figure = patches_figure(Image.new("RGB", (80, 60)), WHOLE, (4, 4), [Panel(title, ["a", "犬", "🐶", ""] * 4)], 1)
    assert save_figure(figure, tmp_path / "a.png") == "犬🐶"
    (axes,) = figure.axes
    assert axes.get_title(loc="left").split() == title.split()
    assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1


def test_a_photo_that_is_gone_is_named(store: LabelStore, tmp_path: Path) -> None:
    assert photo_of(store, "000.png").size == (48, 48)
    shutil.copyfile(tmp_path / "photos" / "003.png", tmp_path / "photos" / "000.png")
    with pytest.raises(UserError, match=r"000\.png: cannot be drawn: it is another file than the labelled one; put"):
        photo_of(store, "000.png")
    (tmp_path / "photos" / "000.png").unlink()
    with pytest.raises(UserError, match=r"000\.png: cannot be drawn: No such file"):
        photo_of(store, "000.png")
