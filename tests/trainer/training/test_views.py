"""What a run shows of itself: against float64 loops, kept while it fits, and what is missing said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sea_pipeline.core.errors import UserError
from sea_pipeline.labels.run import label_images
from sea_pipeline.labels.store import open_labels
from sea_pipeline.storage.hashing import fingerprint_of
from tests.support.analysis_models import nearest_twin
from tests.support.run_values import write_run
from tests.support.tiny_runs import FinishedRuns, World, colours, label_settings, tiny_recipe
from trainer.evaluation.evaluator import evaluating
from trainer.model.load import load_model, open_model_folder
from trainer.recipes.recipe import Recipe
from trainer.training import report_views
from trainer.training.report_views import VIEWS, ViewSettings, run_views
from trainer.words import llm_word_table

pytestmark = pytest.mark.slow

M, IMAGES = 16, 2
Seen = tuple[Path, dict[str, Any]]
SETTINGS = ViewSettings(images=IMAGES, new_tokens=3, device="cpu")


def recipe_of(world: World) -> Recipe:
    """A run of two steps with held-out samples."""
    return tiny_recipe(world, data={"evaluate": str(world.held_out)}, training_arguments={"max_steps": 2})


@pytest.fixture
def run(tiny: World, finished: FinishedRuns, tmp_path: Path) -> Path:
    """A run to spoil."""
    return finished.copy(recipe_of(tiny), tmp_path / "run")


@pytest.fixture(scope="module")
def seen(_made: World, finished: FinishedRuns, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A run and its views, to be read only."""
    root = tmp_path_factory.mktemp("seen")
    with pytest.MonkeyPatch.context() as patch, colours():
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        path = finished.copy(recipe_of(_made), root / "run")
        return path, run_views(path, SETTINGS)


@torch.no_grad()
def visual(path: Path, found: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """A model, and V in float64, (images, m, d), from the stock class's own image features."""
    folder = open_model_folder(path)
    model = load_model(folder, Recipe(model=path)).double().eval()
    pictures = [Image.open(image["file"]).convert("RGB") for image in found["images"]]
    pixels = folder.processor.image_processor(pictures, return_tensors="pt")["pixel_values"].double()
    return model, model.projected(model.tower_output(pixels))


def named(found: dict[str, Any], numbers: list[int]) -> list[str]:
    return [found["texts"][number] for number in numbers]


def test_words_before_and_after_are_the_nearest_of_the_list(tiny: World, seen: Seen) -> None:
    run, found = seen
    assert found["held_out"] is True
    assert found["notes"] == {}
    assert [image["image"] for image in found["images"]] == ["12.png", "13.png"]
    store = open_labels(tiny.labels)
    for moment, path in (("before", tiny.model), ("after", run / "model")):
        model, tokens = visual(path, found)
        embeddings = model.get_input_embeddings().weight[: open_model_folder(path).vocabulary]
        table = llm_word_table(embeddings, open_model_folder(path).processor.tokenizer, store.words, "space")
        for image, one in zip(found["images"], tokens, strict=True):
            places = nearest_twin(one, table)
            assert named(found, image[moment]["nearest"]) == [store.words[place] for place in places]
            cosines = torch.cosine_similarity(one, table[places].double(), dim=-1)
            torch.testing.assert_close(torch.tensor(image[moment]["cosine"]).double(), cosines, atol=6e-5, rtol=0)


def test_labels_are_those_of_the_store_and_the_lens_is_of_every_layer(tiny: World, seen: Seen) -> None:
    found, store = seen[1], open_labels(tiny.labels)
    for image in found["images"]:
        wanted = [[store.words[word] for word in row if word >= 0] for row in store[image["image"]].word_ids]
        assert [named(found, labels) for labels in image["labels"]] == wanted
    assert [one["layer"] for one in found["lens"]] == [one["layer"] for one in found["summary"]]
    kinds = {"contextual_share", "contextual_gain", "word_share", "word_gain", "word_label_share"}
    assert kinds < set(found["lens"][0])


def test_layers_begin_with_the_projector_and_texts_are_generated(seen: Seen) -> None:
    run, found = seen
    layers = len(found["summary"])
    model, tokens = visual(run / "model", found)
    folder = open_model_folder(run / "model")
    embeddings = model.get_input_embeddings().weight[: folder.vocabulary]
    decoded = [folder.processor.tokenizer.decode([token]).strip() for token in nearest_twin(tokens[0], embeddings)]
    assert [text.strip() for text in named(found, found["images"][0]["layers"][0])] == decoded
    for number, layer in enumerate(found["summary"]):
        flags = "".join(image["describing"][number] for image in found["images"])
        assert len(flags) == IMAGES * M
        assert flags.count("1") / len(flags) == pytest.approx(layer["meaningful"])
    for image in found["images"]:
        assert [len(row) for row in image["layers"]] == [M] * layers
        assert set(image["generated"]) == {"visual", "replaced", "control", "control_of"}
    assert found["replace"]["images"] == IMAGES


@pytest.mark.parametrize("layers", [None, 2])
def test_degrees_are_the_attention_of_an_eager_model(run: Path, layers: int | None) -> None:
    record = json.loads((run / "run.json").read_text())
    for recipe in (record["recipe"], record["fields"]["recipe"]):
        recipe["loss"]["basic"]["layers"] = layers
    write_run(run, record)
    found = run_views(run, SETTINGS)
    made = report_views._Views(run, SETTINGS)
    model = load_model(open_model_folder(run / "model"), Recipe(model=run / "model")).double().eval()
    model.model.language_model.set_attn_implementation("eager")
    half = layers or len(model.model.language_model.layers) // 2
    with evaluating(model):
        (batch,) = made.evaluator.batches(torch.device("cpu"))
        at = batch["input_ids"] == model.config.image_token_id
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        output = model.model(**given, pixel_values=batch["pixel_values"].double(), output_attentions=True)
    rows = batch["attention_mask"].bool() & ~at
    for number, image in enumerate(found["images"]):
        received = sum(layer[number].mean(0)[rows[number]][:, at[number]].sum(0) for layer in output.attentions[:half])
        wanted = received / received.sum()
        torch.testing.assert_close(torch.tensor(image["degree"]).double(), wanted, atol=2e-6, rtol=1e-3)


def test_views_are_kept_while_they_fit(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_views(run, SETTINGS)
    written = json.loads((run / VIEWS).read_text())
    assert written == first | {"sha256": fingerprint_of(first)}
    with monkeypatch.context() as patch:
        patch.setattr(report_views, "load_model", lambda *_: pytest.fail("computed again"))
        assert run_views(run, SETTINGS) == first
    assert len(run_views(run, ViewSettings(images=1, new_tokens=3, device="cpu"))["images"]) == 1
    for harmed in ('{"key": "half', json.dumps(written | {"texts": [f"{text}!" for text in first["texts"]]})):
        (run / VIEWS).write_text(harmed)
        assert run_views(run, SETTINGS) == first
    (run / VIEWS).write_text(json.dumps(first | {"notes": {"layers": "as earlier versions write it"}}))
    assert "layers" in run_views(run, SETTINGS)["notes"]


def test_other_weights_are_looked_at_again(tiny: World, run: Path) -> None:
    first = run_views(run, SETTINGS)
    shutil.copy(tiny.model / "model.safetensors", run / "model" / "model.safetensors")
    again = run_views(run, SETTINGS)
    assert again["key"] != first["key"]
    for image in again["images"]:
        assert image["after"] == image["before"]


def test_labels_are_those_that_the_run_was_begun_with(
    tiny: World, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = json.loads((run / "run.json").read_text())
    record["recipe"]["labels"] = {"path": None}
    (run / "run.json").write_text(json.dumps(record))
    shutil.copytree(tiny.labels, "runs/labels/first")
    first = run_views(run, SETTINGS)
    assert first["labelled"]
    label_images(label_settings(tiny.data.parent / "images", tiny.words, Path("runs/labels/newer"), top_n=2))
    assert run_views(run, SETTINGS) == first


def test_what_is_gone_is_said_and_the_rest_is_shown(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that it began with, and the labels, in whose place tokens stand for words."""
    monkeypatch.chdir(tmp_path)
    record = json.loads((run / "run.json").read_text())
    record["fields"]["model"]["weights"] = "another"
    record["recipe"]["labels"]["path"] = str(tmp_path / "gone")
    write_run(run, record)
    found = run_views(run, SETTINGS)
    assert "began with is not at" in found["notes"]["before"]
    assert found["labelled"] is False
    assert "gone" in found["notes"]["labels"]
    for image in found["images"]:
        assert not {"before", "labels", "describing"} & image.keys()
        assert image["after"]["nearest"] == image["layers"][0]


@pytest.mark.parametrize("part", ["multi_modal_projector", "model.layers.0.self_attn.q_proj"])
def test_a_run_that_diverged_is_said(part: str, run: Path) -> None:
    """Broken visual tokens leave nothing to be shown; a broken LLM leaves the words nearest to them."""
    file = run / "model" / "model.safetensors"
    weights = load_file(file)
    weights[next(name for name in weights if part in name)][:] = torch.nan
    save_file(weights, file, {"format": "pt"})
    if part == "multi_modal_projector":
        with pytest.raises(UserError, match="views: expected numbers as visual tokens; found some that are not finite"):
            run_views(run, SETTINGS)
        return
    found = run_views(run, SETTINGS)
    assert {"layers", "lens", "degree", "generated"} <= found["notes"].keys()
    assert all("after" in image for image in found["images"])
