"""A run's folder, from begin to end: what is in it, and what is refused."""

import json
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.run import label_images
from sea_pipeline.labels.store import LabelStore, open_labels
from tests.support.heard import Heard
from tests.support.tiny_runs import (
    FinishedRuns,
    SquareEncoder,
    World,
    colours,
    evaluations,
    label_settings,
    logged,
    short_recipe,
    tiny_recipe,
    tiny_trainer,
)
from trainer.data.inputs import (
    open_label_source,
    say_unread_teacher,
    say_unused_keys,
    say_what_labels_lack,
    warn_of_other_photos,
)
from trainer.data.run_rows import open_conversations
from trainer.measures.metrics import HIGHER_IS_BETTER
from trainer.model.load import open_model_folder
from trainer.recipes.recipe import LabelSource, Loss, Recipe, Sds
from trainer.training import run as train_run
from trainer.training.match_norm import match_norm
from trainer.training.run import train

SPOKEN = {
    "trained_tokens",
    *(f"{name}{error}" for name in ("lm_loss", "lm_loss_content", "lm_loss_other") for error in ("", "_se")),
    *(f"right_photo_gain{kind}{error}" for kind in ("", "_content") for error in ("", "_se")),
}
METRICS = SPOKEN | {"tacs", "label_hit@1", "label_hit@10", "gap"}
METRICS |= {"meaningful", "meaningful_chance", "distinct_tokens"}


def test_a_start_model_that_another_machine_makes_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system without locks between them; the same parts and seed give the same model."""
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate({"model": {"vision": "a", "llm": "b"}, "data": {"train": "samples"}})

    def refused(*_: object, **__: object) -> None:
        raise UserError("expected a new or an empty folder")

    def behind_another(vision: str, llm: str, out: Path, **_: object) -> None:
        out.mkdir()
        refused()

    monkeypatch.setattr(train_run, "init_model", refused)
    with pytest.raises(UserError, match="expected a new or"):
        train_run._model_path(recipe, Heard())
    monkeypatch.setattr(train_run, "init_model", behind_another)
    assert train_run._model_path(recipe, Heard()).is_dir()


class Bars(Heard):
    """Keeps the bars, too: what each is of, its total, and what was counted."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: list[tuple[str, int, list[int]]] = []

    def progress(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        self.bars.append((what, total, counted := [done]))
        return nullcontext(counted.append)


@pytest.mark.slow
def test_a_run_leaves_its_folder(tiny: World, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny, data={"evaluate": str(tiny.held_out)}, evaluate_every=4, name="whole")
    reporter = Bars()
    run = train(recipe, tmp_path / "out", reporter=reporter)
    held_out = len(json.loads(tiny.held_out.read_text()))
    bars = [(what, total, sum(counted)) for what, total, counted in reporter.bars]
    assert [bar for bar in bars if bar[0] in ("evaluating", "training")] == [
        ("evaluating", held_out, held_out),
        ("training", 8, 8),
    ]
    heard: dict[str, Any] = reporter.parts | {title: set(values) for title, values in reporter.measured.items()}

    assert run.model == tmp_path / "out" / "model"
    left = {path.name for path in run.out.iterdir()} - {".tmp"}
    assert left == {"run.json", "metrics.jsonl", "checkpoints", "model", "summary.json"}
    described = json.loads((run.out / "run.json").read_text())
    assert Recipe.model_validate(described["recipe"]) == recipe
    assert set(described["versions"]) == {"sea-pipeline", "torch", "transformers"}
    summary = json.loads((run.out / "summary.json").read_text())
    assert summary == run.summary
    assert summary | {"name": "whole", "steps": 8, "seed": 3, "fingerprint": described["fingerprint"]} == summary
    assert set(summary["start"]) == set(summary["end"]) == METRICS
    beside = {"lm_loss_other", "trained_tokens", "meaningful_chance", "distinct_tokens"}
    assert {name for name in METRICS if not name.endswith("_se")} - beside == set(HIGHER_IS_BETTER)
    assert summary["start"]["gap"] != summary["end"]["gap"]
    assert [line["step"] for line in evaluations(run.out)] == [0, 4, 8]
    assert all({name.removeprefix("eval_") for name in line} >= METRICS for line in evaluations(run.out))
    assert [line["step"] for line in logged(run.out)] == list(range(1, 9))
    assert heard["projector"] == (16 * 32 + 32 + 32 * 32 + 32,) * 2 + (1e-3,)
    assert heard["alignment"] == (1, 1, 1e-3)
    assert heard["vision"][1:] == heard["llm"][1:] == (0, None)
    assert heard["step 8"] == METRICS


def test_a_finished_run_returns_at_once(tiny: World, finished: FinishedRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    out = finished(short_recipe(tiny))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr("trainer.training.run._Training", None)
    for resume in (False, True):
        run = train(short_recipe(tiny), out, resume=resume)
        assert (run.out, run.summary) == (out, json.loads((out / "summary.json").read_text()))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_what_is_missing_at_the_end_is_made_again(tiny: World, finished: FinishedRuns, tmp_path: Path) -> None:
    recipe = short_recipe(tiny, data={"evaluate": str(tiny.held_out)})
    out = finished.copy(recipe, tmp_path / "out")
    (saved,) = (out / "model").glob("*.safetensors")
    weights, summary = saved.read_bytes(), json.loads((out / "summary.json").read_text())
    shutil.rmtree(out / "model")
    (out / "summary.json").unlink()
    again = train(recipe, out)
    assert saved.read_bytes() == weights
    assert again.summary | {"seconds": 0} == summary | {"seconds": 0}
    assert [line["step"] for line in logged(out)] == [1, 2]


@pytest.mark.slow
def test_labels_are_made_where_none_fit_and_found_again(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    recipe = short_recipe(tiny, labels={"path": None, "wordlist": str(tiny.words), "top_n": 3})
    run = train(recipe, reporter=Heard(said))
    assert run.out.parent == Path("runs/train")
    assert "making labels, as none fit" in said
    (made,) = Path("runs/labels").iterdir()
    said.clear()
    train(recipe, tmp_path / "second", reporter=Heard(said))
    assert said[:1] == [f"the run goes to {tmp_path / 'second'}; labels: {made}"]
    assert all("pairs of patch and word" in line for line in said[1:])
    assert run.summary["labels"] is not None
    assert run.summary["labels"] == json.loads((tmp_path / "second" / "summary.json").read_text())["labels"]


def test_what_nothing_would_train_is_refused(tiny: World, tmp_path: Path) -> None:
    nothing = {"learning_rates": {"projector": None}, "loss": {"sea": {"weight": 0}}}
    with pytest.raises(UserError, match="learning_rates: projector, llm and vision are all null"):
        train(short_recipe(tiny, **nothing), tmp_path / "out")
    texts = [record for record in json.loads(tiny.data.read_text()) if "image" not in record]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    alone = short_recipe(tiny, data={"train": str(tmp_path / "texts.json")}, loss={"lm": 0})
    with pytest.raises(UserError, match=r"texts\.json: expected images, as loss.lm is 0; found none"):
        train(alone, tmp_path / "out")
    large = short_recipe(tiny, loss={"sea": {"window": 5, "ragged": "drop"}})
    with pytest.raises(UserError, match=r"loss\.sea\.window: 5 does not fit into the 4 x 4 visual tokens"):
        train(large, tmp_path / "out")
    with colours(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SquareEncoder, "patches", lambda _, pixels: torch.zeros(len(pixels), 16, 3))
        patch.setattr(SquareEncoder, "word_fields", lambda _: {"name": "colours of nothing"})
        label_images(label_settings(tiny.data.parent / "images", tiny.words, tmp_path / "labels"))
    for model in (str(tiny.model), {"attach": str(tiny.model)}):
        wordless = short_recipe(tiny, labels={"path": str(tmp_path / "labels")}, loss={"sea": {"weight": 1.0}})
        wordless = Recipe.model_validate(wordless.model_dump(exclude_unset=True) | {"model": model})
        with pytest.raises(UserError, match=r"no patch of its 15 images has .* labels\.path"):
            train(wordless, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_metrics_are_those_of_the_model_that_is_saved(tiny: World, tmp_path: Path) -> None:
    """`match_norm` changes it behind the last step, even where that step was evaluated."""
    recipe = {"loss": {"lm": 0}, "data": {"evaluate": str(tiny.held_out)}}
    reporter = Heard()
    plain = train(short_recipe(tiny, **recipe), tmp_path / "plain", reporter=reporter)
    assert "llm, loaded part" in reporter.parts
    assert "llm" not in reporter.parts
    often = train(short_recipe(tiny, **recipe, evaluate_every=1), tmp_path / "often")
    assert often.summary["end"] == plain.summary["end"]
    assert [line["step"] for line in evaluations(often.out)] == [0, 1, 2]


@pytest.mark.slow
def test_rows_that_are_trained_on_are_not_called_held_out(tiny: World, tmp_path: Path) -> None:
    run = train(short_recipe(tiny, data={"evaluate": str(tiny.data)}), tmp_path / "out")
    assert run.summary["rows"]["measured, though trained on"] == run.summary["rows"]["rows"]
    assert "held out" not in run.summary["rows"]


@pytest.mark.slow
def test_lengths_are_matched_where_the_first_records_have_no_image(tiny: World, tmp_path: Path) -> None:
    records = sorted(json.loads(tiny.data.read_text()), key=lambda record: "image" in record)
    texts = [record | {"id": f"text {number}"} for number in range(16) for record in records[:1]]
    factors = []
    for name, rows in (("behind", texts + records), ("in front", records[::-1] + texts)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        data = {"train": str(tmp_path / f"{name}.json")}
        trainer = tiny_trainer(short_recipe(tiny, data=data, loss={"lm": 0}), tmp_path / name)
        factors.append(match_norm(trainer.model, trainer.data, open_model_folder(tiny.model).vocabulary))
    assert "image" not in texts[0]
    assert factors[0] == pytest.approx(factors[1])
    assert factors[0] != 1


@pytest.mark.slow
def test_the_newest_labels_that_fit(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = tiny.data.parent / "images"
    names = ("old", "new", "other grid", "other images")
    folders = {name: Path("runs/labels") / name for name in names}
    for age, name in enumerate(names):
        pictures = images
        if name == "other grid":
            monkeypatch.setattr(SquareEncoder, "grid", (3, 4))
        if name == "other images":
            pictures = tmp_path / "pictures"
            shutil.copytree(images, pictures, ignore=shutil.ignore_patterns("00.png"))
        label_images(label_settings(pictures, tiny.words, folders[name]))
        os.utime(folders[name] / "manifest.json", (age, age))
    recipe = short_recipe(tiny, labels={"path": None})
    folder = open_model_folder(tiny.model)
    conversations = open_conversations(recipe.data, folder)

    def found(recipe: Recipe) -> str:
        store = open_label_source(recipe, folder, conversations)
        assert store is not None
        return store.path.name

    read: list[str] = []
    plain = LabelStore._values
    monkeypatch.setattr(LabelStore, "_values", lambda self, *names: read.append(self.path.name) or plain(self, *names))
    assert found(recipe) == "new"
    assert set(read) == {"new"}  # what does not fit by its manifest is not read
    assert found(short_recipe(tiny, labels={"path": None, "transfer": True})) == "other grid"
    monkeypatch.setattr(SquareEncoder, "grid", folder.grid)
    label_images(label_settings(images, tiny.words, folders["old"].parent / "fewer", top_n=2))
    assert found(recipe) == "fewer"
    named = {"path": None, "encoder": "packaged", "wordlist": str(tiny.words)}
    assert found(short_recipe(tiny, labels=named | {"top_n": 2})) == "fewer"
    assert found(short_recipe(tiny, labels=named | {"top_n": 3})) == "new"
    for encoder in ("open_clip:ViT-B-32/openai", "s2:packaged"):
        with pytest.raises(ZeroDivisionError):  # they must be made
            asked = short_recipe(tiny, labels={"path": None, "encoder": encoder})
            open_label_source(asked, folder, conversations, make=lambda settings: 1 / 0)  # type: ignore[return-value]
    other = tmp_path / "other.txt"
    other.write_text(tiny.words.read_text() + "mauve\n")
    label_images(label_settings(images, other, folders["old"].parent / "of another list"))
    assert found(short_recipe(tiny, labels=named)) == "fewer"
    assert found(short_recipe(tiny, labels={"path": None, "wordlist": str(other)})) == "of another list"
    said: list[str] = []
    for keys in (named | {"top_n": 3}, {"top_n": 10, "encoder": "packaged"}):
        say_unused_keys(LabelSource(**{**keys, "path": "labels"}), Heard(said))
    assert said == ["labels.path: names the folder of labels, so that labels.wordlist and labels.top_n are not used"]
    os.utime(folders["old"] / "manifest.json", (2e10, 2e10))
    assert found(recipe) == "old"
    with pytest.raises(UserError, match="holds none of the"):
        label_images(label_settings(tmp_path / "pictures", tiny.words, tmp_path / "elsewhere"))
        store = tmp_path / "elsewhere"
        moved = short_recipe(tiny, data={"train": str(renamed(tiny, tmp_path))}, labels={"path": str(store)})
        open_label_source(moved, folder, open_conversations(moved.data, folder))


def test_a_teacher_that_no_stage_reads_is_said() -> None:
    plain, basic = Recipe(teacher="targets"), Recipe(teacher="targets", loss=Loss(sds=Sds(weight=0.01)))
    heard = Heard()
    for stages in ([plain, plain], [plain, basic], [Recipe()]):
        say_unread_teacher(stages, heard)
    (said,) = heard.warnings
    assert said.startswith("teacher: is not read, because loss.das.weight and loss.sds.weight are 0; give one of them")


def renamed(tiny: World, tmp_path: Path) -> Path:
    """The data with other image ids: the paths start one folder higher."""
    records = json.loads(tiny.data.read_text())
    for record in records:
        if "image" in record:
            record["image"] = f"./{record['image']}"
    (tmp_path / "renamed.json").write_text(json.dumps(records))
    return tmp_path / "renamed.json"


@pytest.mark.slow
def test_without_l_a_no_labels_are_made(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(label_run, "label_images", None)
    recipe = short_recipe(
        tiny, labels={"path": None}, loss={"sea": {"weight": 0}}, data={"evaluate": str(tiny.held_out)}
    )
    said: list[str] = []
    run = train(recipe, tmp_path / "out", reporter=Heard(said))
    assert not Path("runs").exists()
    assert run.summary["labels"] is None
    (line,) = (line for line in said if line.startswith("no labels are measured (label_hit, gap): no folder below "))
    assert f"holds all {len(open_conversations(recipe.data, open_model_folder(tiny.model)).image_ids)} images" in line
    assert set(run.summary["end"]) == SPOKEN | {"tacs"}


def test_labels_of_few_images_are_said(tiny: World, tmp_path: Path) -> None:
    images = tiny.data.parent / "images"
    some = tmp_path / "some"
    some.mkdir()
    shutil.copy(images / "00.png", some / "00.png")
    label_images(label_settings(some, tiny.words, tmp_path / "few"))
    recipe = short_recipe(tiny, labels={"path": str(tmp_path / "few")}, data={"evaluate": str(tiny.held_out)})
    conversations = open_conversations(recipe.data, open_model_folder(tiny.model))
    store, heard = open_labels(tmp_path / "few"), Heard()
    say_what_labels_lack(recipe, conversations, store, heard)
    by_chance, trained, held_out = heard.warnings
    assert f"few: holds 1 of the {len(conversations.image_ids)} images trained on; SEA skips the others" in trained
    assert "few: holds 0 of the 3 images held out; label_hit is measured on them alone" in held_out
    heard = Heard()
    say_what_labels_lack(recipe, conversations, labels := open_labels(tiny.labels), heard)
    assert heard.lines == [by_chance]
    share = labels.manifest["fields"]["top_n"] / len(labels.words)
    assert f"so a blind model has {share:.2f} by chance" in by_chance
    labels.words = [*labels.words] * 10
    say_what_labels_lack(recipe, conversations, labels, heard)
    assert heard.lines == [by_chance]


@pytest.mark.parametrize(("replaced", "told"), [(1, 1), (12, 11)])  # one of them is of no row
def test_labels_of_other_photos_with_the_same_names(
    replaced: int, told: int, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told by their files, and if most are others, not taken unless they are named."""
    monkeypatch.chdir(tmp_path)
    photos = Path(shutil.copytree(tiny.data.parent / "images", tmp_path / "photos"))
    for number in range(replaced):
        shutil.copy(photos / f"{(number + 1) % 12:02d}.png", photos / f"{number:02d}.png")
    label_images(label_settings(photos, tiny.words, Path("runs/labels/others")))
    recipe, folder = short_recipe(tiny, labels={"path": None}), open_model_folder(tiny.model)
    conversations, heard = open_conversations(recipe.data, folder), Heard()
    others = open_labels("runs/labels/others")
    warn_of_other_photos(others, conversations, heard)
    (said,) = heard.warnings
    assert f"by {told} of the 11 photos that were compared (such as '00.png'); make it again" in said
    found = open_label_source(recipe, folder, conversations, make=None)
    assert (found is None) == (replaced == 12)
    kept = open_label_source(recipe, folder, conversations, make=None, begun_with=others.fingerprint)
    assert kept is not None, "a run that goes on keeps its own"
    again = label_images(label_settings(tiny.data.parent / "images", tiny.words, tmp_path / "again"))
    heard = Heard()
    warn_of_other_photos(open_labels(again.ledger.root), conversations, heard)
    assert heard.lines == []
