"""What `evaluate`, `probe --llm` and `report` say of existing models: planted answers, blind models, questions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT
from sea_pipeline.labels.settings import LlmProbeSettings
from sea_pipeline.report.run import ReportSettings, find_inputs, write_report
from tests.support.heard import Heard
from tests.trainer.attach.existing import KINDS, ExistingWorld
from trainer.attach.batches import processed
from trainer.attach.folder import ExistingFolder
from trainer.attach.run_model import AttachedModel
from trainer.evaluation import evaluator
from trainer.evaluation.answers import Question
from trainer.evaluation.checks import check_evaluate
from trainer.evaluation.evaluator import evaluating
from trainer.evaluation.existing_evaluator import ExistingEvaluator
from trainer.evaluation.existing_questions import ExistingAsker
from trainer.evaluation.existing_run import load_attached
from trainer.evaluation.llm_probe import probe_llm
from trainer.evaluation.run import EvaluateSettings, evaluate_model
from trainer.training.existing_views import ExistingViews, area
from trainer.training.report_views import ViewSettings, run_views
from trainer.training.run import train

pytestmark = pytest.mark.usefixtures("colour_encoder")


def ready(world: ExistingWorld, name: str) -> tuple[AttachedModel, ExistingEvaluator, ExistingFolder]:
    folder, store = world.open(name), world.pictures.open()
    data = world.read(folder, file=world.held_out)
    evaluator = ExistingEvaluator(data, store, vocabulary=folder.vocabulary, batch_size=2)
    return load_attached(folder, store), evaluator, folder


def settings_of(world: ExistingWorld, model: Path, **more: Any) -> EvaluateSettings:
    """To evaluate a model on the rows held out."""
    base = {"data": str(world.held_out), "image_root": world.pictures.folder, "device": "cpu"}
    return EvaluateSettings.of(**(base | {"model": model} | more))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_planted_tokens_hit_and_the_other_photo_is_seen(
    name: str, world: ExistingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, evaluator, _ = ready(world, name)
    before = evaluator(model)
    assert before["label_hit@1"] < 0.6
    assert before["gap"] > 0.05
    table = evaluator.word_table(evaluator.embeddings(model))
    assert table is not None
    plain = model.tiles

    def planted(names: list[str]) -> Any:
        return [
            [(tile, table[model.labels_on(image, tile)[:, 0]]) for tile, _ in tiles]
            for image, tiles in zip(names, plain(names), strict=True)
        ]

    monkeypatch.setattr(model, "tiles", planted)
    found = evaluator(model)
    assert found["label_hit@1"] == found["label_hit@10"] == 1
    assert found["gap"] == pytest.approx(0, abs=1e-4)
    assert evaluator.nearest_words(model, 0, table)[0] == evaluator.word(int(_first_label(model, world)))
    # L_lm does not depend on what is measured, and the photo does something to it.
    assert found["lm_loss"] == before["lm_loss"]
    assert found["right_photo_gain"] == pytest.approx(found["lm_loss_other"] - found["lm_loss"], abs=1e-6)
    assert abs(found["right_photo_gain"]) > 1e-5


def _first_label(model: AttachedModel, world: ExistingWorld) -> torch.Tensor:
    tiles = model.tiles(["wide.png"])  # the evaluator asked for this image last
    return model.labels_on("wide.png", tiles[0][0][0])[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_blind_model_gains_nothing_and_losses_are_the_familys(name: str, world: ExistingWorld) -> None:
    """With photos of one size, for a count of tokens is seen by the blind, too."""
    model, evaluator, folder = ready(world, name)
    evaluator.data.rows = evaluator.data.rows.filter(lambda row: row["id"] != "held-tall.png")
    seeing = evaluator(model)
    texts = [row["text"] for row in evaluator.data.rows]
    spans = [row["spans"] for row in evaluator.data.rows]
    swapped = [[evaluator.data.image(image, "")] for image in ("other.png", "wide.png")]
    given, trained = processed(folder.chat, texts, swapped, spans=spans)
    vlm: Any = model.vlm
    with torch.no_grad():
        other = vlm(**given, labels=torch.where(trained, given["input_ids"], -100)).loss
    assert seeing["lm_loss_other"] == pytest.approx(float(other), rel=1e-5)
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.zero_()
    blind = evaluator(model)
    assert blind["right_photo_gain"] == pytest.approx(0, abs=1e-7)
    assert abs(seeing["right_photo_gain"]) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, "paligemma"])
def test_questions_are_answered_by_the_models_own_logits(name: str, world: ExistingWorld) -> None:
    model, _, folder = ready(world, name)
    asked = [
        Question("wide.png", "Is it red?", ("yes",), True),
        Question("tall.png", "Is there anything green in it?", ("no",), True),
        Question("odd.png", "Which colour?", ("blue",), False),
    ]
    asker = ExistingAsker(model, folder, world.pictures.image, batch_size=2)
    with evaluating(model):
        found = asker(asked)
        prompts = asker.prompts(asked)
        said = asker._say(prompts[:2], ["wide.png", "tall.png"], yes_no=True)
    assert (found["yes_no_questions"], found["vqa_questions"]) == (2, 1)
    words = folder.processor.tokenizer
    for prompt, image, answer in zip(prompts, ("wide.png", "tall.png"), said, strict=False):
        assert {words.decode(list(begun)).strip() for begun in prompt.yes} <= {"Y", "y", "Yes", "yes", "Ye", "ye"}
        given, _ = processed(folder.chat, [prompt.text], [[world.pictures.image(image)]])
        vlm: Any = model.vlm
        with torch.no_grad():
            last = vlm(**given).logits[0, -1]
        yes, no = (last[sorted(token for (token,) in begun)].logsumexp(-1) for begun in (prompt.yes, prompt.no))
        assert answer == ("yes" if yes > no else "no")
        assert prompt.text.count(folder.chat.mark) == 1


def test_the_commands_read_a_folder(world: ExistingWorld, tmp_path: Path) -> None:
    folder = world.model("qwen2_5_vl")
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([{"image": "wide.png", "question": "Red?", "label": "yes"}]))
    asked = settings_of(world, folder, labels=world.pictures.labels, questions=questions)
    check_evaluate(asked)
    found = evaluate_model(asked)
    assert {"lm_loss", "lm_loss_other", "right_photo_gain", "label_hit@1"} <= found.keys()
    assert {"gap", "tacs", "yes_no_accuracy"} <= found.keys()
    assert "meaningful" not in found, "its images have other numbers of tokens"
    for name, value in {"layers": True, "replace": True, "lens": "contextual", "template": "plain"}.items():
        with pytest.raises(UserError, match=f"--{name}: for a model that sea-pipeline init makes; .* is a qwen2_5_vl"):
            more = {"lens_data": str(world.data)} if name == "lens" else {}
            check_evaluate(settings_of(world, folder, **{name: value}, **more))


@pytest.mark.slow
def test_a_photo_that_is_cut_short_is_left_out_and_told(world: ExistingWorld, tmp_path: Path) -> None:
    """Its header is whole, so only reading it finds the damage; and no encoder costs `meaningful` alone."""
    images = Path(shutil.copytree(world.pictures.folder, tmp_path / "images"))
    rows = json.loads(world.held_out.read_text())
    cut = images / rows[0]["image"]
    cut.write_bytes(cut.read_bytes()[:-40])
    settings = settings_of(world, world.model("qwen2_5_vl"), labels=world.pictures.labels, image_root=images)
    with pytest.raises(UserError, match="mend it, or leave its rows out with --bad-rows leave_out"):
        evaluate_model(settings)
    heard = Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "load_encoder", refuse)
        found = evaluate_model(settings.model_copy(update={"bad_rows": "leave_out"}), reporter=heard)
    left, by_chance, encoder = heard.warnings
    assert by_chance.startswith("label_hit@10: ")
    assert f"1 of {len(rows)} rows are left out: 1 x expected images that can be read" in left
    assert "meaningful is not measured, because the labels' encoder cannot be loaded: it is gone" in encoder
    assert found["label_hit@10"] >= 0


def refuse(*_: Any) -> Any:
    raise UserError("it is gone")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_run_is_measured_afterwards_as_by_itself(name: str, world: ExistingWorld, tmp_path: Path) -> None:
    """LLaVA's, too: its template writes a question otherwise if it comes as a string, as models of init get it."""
    run = train(world.recipe(name, training_arguments={"max_steps": 1, "save_strategy": "no"}), tmp_path / "run")
    labels: dict[str, Any] = {"labels": world.pictures.labels, "transfer": True}
    asked = settings_of(world, run.model, **labels)
    check_evaluate(asked)
    end = json.loads((run.out / "summary.json").read_text())["end"]
    assert evaluate_model(asked) == pytest.approx(end, rel=1e-6)
    if name != "llava":
        return
    with pytest.raises(UserError, match="is a llava that its run trained as an existing model; leave it out, or copy"):
        check_evaluate(settings_of(world, run.model, layers=True, **labels))
    shutil.copytree(run.model, tmp_path / "copy")
    elsewhere = settings_of(world, tmp_path / "copy", layers=True, **labels)
    check_evaluate(elsewhere)
    found = evaluate_model(elsewhere)
    assert found["layers"]
    assert found["lm_loss"] != pytest.approx(end["lm_loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS[1:], "gemma3", "qwen3_vl"])
def test_the_llm_inside_is_probed(name: str, world: ExistingWorld) -> None:
    found = probe_llm(LlmProbeSettings.of(llm=str(world.model(name)), device="cpu"))
    assert found.tokens >= 16
    assert len(found.on_text.layers) == 5


@pytest.mark.slow
def test_a_run_is_shown_in_the_report(world: ExistingWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"max_steps": 1, "save_strategy": "no"}
    run = train(world.recipe("qwen2_5_vl", training_arguments=short), tmp_path / "run")
    views = run_views(run.out, ViewSettings(images=2, device="cpu"))
    assert [image["image"] for image in views["images"]] == ["wide.png", "other.png"]
    for image in views["images"]:
        cells = image["grid"][0] * image["grid"][1]
        assert len(image["after"]["nearest"]) == len(image["before"]["cosine"]) == len(image["labels"]) == cells
    assert views["notes"]["layers"] == "for models of sea-pipeline init; this run trained one of another family"
    _, (shown,) = find_inputs([str(run.out)])
    shown.views = views
    asked = ReportSettings.of(folders=(str(run.out),), out=tmp_path / "report.html")
    write_report(None, [shown], asked, reporter=SILENT)
    assert "wide.png" in (tmp_path / "report.html").read_text()
    broken = shutil.copytree(run.out / "model", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights[next(name for name in weights if "merger.mlp.2" in name)][:] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    (run.out / "views.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(ExistingViews, "_start", lambda _: broken)
        views = run_views(run.out, ViewSettings(images=2, device="cpu"))
    assert "found some that are not finite" in views["notes"]["before"]
    assert all("after" in image and "before" not in image for image in views["images"])
    shutil.copy(broken / "model.safetensors", run.out / "model")
    with pytest.raises(UserError, match="views: expected numbers as visual tokens; found some that are not finite"):
        run_views(run.out, ViewSettings(images=2, device="cpu"))


def test_the_whole_view_is_shown_before_its_tiles() -> None:
    """OneVision's, of 378 of 384 pixels, and its tiles as one grid, of which each loses as much."""
    whole, joined, tile = (0, 0, 378 / 384, 378 / 384), (0, 0, 762 / 768, 762 / 768), (0.5, 0, 1, 0.5)
    assert max((whole, joined, tile), key=area) == whole
    assert max((tile, whole), key=area) == whole
