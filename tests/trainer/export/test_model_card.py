"""The card of an export as the hub reads it: its metadata, whatever a run is called, and no path of this machine."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.utils import validate_repo_id
from transformers.pipelines import SUPPORTED_TASKS

from tests.support.initialised import edit
from tests.support.run_values import write_run, written
from tests.support.tiny_models import tiny_llm, tiny_model, tiny_vision
from trainer.export.model_card import model_card
from trainer.model import hub
from trainer.model.assemble import init_model
from trainer.model.load import open_model_folder
from trainer.training.run import TrainRun

ODD = [
    "mine: a # b", "'quoted' \"twice\"", "two\nlines\n---\n# three", "日本 é 🙂", "- [x] {y}", "1e-3", "1.5e3", "0o17",
    "null", "yes", "2026-01-01", "", " ", "| a | b |", "{{ 1 }} {% raw %}", "&a *b !c %d @e `f`", "\x85\u2028\t\r\x07",
    "x" * 300,
]  # fmt: skip
YAML_1_2 = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)(e[-+]?\d+)?|0o[0-7]+|0x[\da-f]+", re.IGNORECASE)
"""Numbers in the hub's YAML, if nothing quotes them."""


def check_metadata(card: str, file: Path) -> dict[str, Any]:
    """Holds a card to what the hub documents of its metadata, and returns these."""
    file.write_text(card, "utf-8")
    data = metadata_load(file)
    assert data is not None
    json.dumps(data, allow_nan=False)
    assert data.keys() <= {
        "base_model", "base_model_relation", "library_name", "pipeline_tag", "tags", "model-index"
    }  # fmt: skip
    assert data.get("pipeline_tag", "text-generation") in SUPPORTED_TASKS
    assert data["tags"] == ["llava", "sea-pipeline"]
    for name in data.get("base_model", []):
        validate_repo_id(name)
    assert data.get("base_model_relation", "merge") in ("finetune", "adapter", "merge", "quantized")
    for model in data.get("model-index", []):
        assert model.keys() == {"name", "results"}
        texts = [model["name"]]
        for result in model["results"]:
            assert result.keys() == {"task", "dataset", "metrics"}
            assert result["task"] == {"type": data["pipeline_tag"]}
            assert result["dataset"].keys() == {"type", "name"}
            texts += [
                *result["dataset"].values(),
                *(metric[key] for metric in result["metrics"] for key in ("type", "name")),
            ]
            assert all(isinstance(metric["value"], float) for metric in result["metrics"])
            assert result["metrics"]
        assert all(isinstance(text, str) and text for text in texts)
        plain = re.findall(r"^[- ]*(?:name|type): ([^'\"\n]+)$", card.partition("\n---\n")[0], re.MULTILINE)
        assert not [text for text in plain if YAML_1_2.fullmatch(text)]
    return data


def read(card: str, file: Path) -> ModelCard:
    """The card as the hub's library reads it, which writes it again as it is."""
    file.write_text(card, "utf-8")
    loaded = ModelCard.load(file)
    assert str(loaded) == card
    return loaded


def changed(run: TrainRun, out: Path, **recipe: Any) -> Path:
    """A copy of a run's record with other settings."""
    out.mkdir()
    for name in ("run.json", "summary.json"):
        shutil.copy(run.out / name, out)
    record = json.loads((out / "run.json").read_text())
    changes = {"recipe": record["recipe"] | recipe, "fields": record["fields"] | {"recipe": {}}}
    write_run(out, record | changes)
    return out


def card_of(run: TrainRun, source: Path, kind: str = "model", **given: Any) -> str:
    return model_card(open_model_folder(run.model), source, kind, "LLaVA", "transformers 5", ["A note."], **given)


@pytest.mark.slow
def test_the_metrics_are_those_of_the_run(run: TrainRun, tmp_path: Path) -> None:
    file = written(run.out, tmp_path / "out") / "README.md"
    check_metadata(file.read_text("utf-8"), tmp_path / "card.md")
    card = read(file.read_text("utf-8"), tmp_path / "card.md")
    assert card.data.model_name == "mine"
    end = json.loads((run.out / "summary.json").read_text())["end"]
    assert len(end) > 3
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == end
    (about,) = {
        (result.task_type, result.dataset_type, result.dataset_name, result.metric_type == result.metric_name)
        for result in card.data.eval_results
    }
    assert about == ("image-text-to-text", "held-out", "held.json (held out)", True)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["checkpoint", "llm", "projector", "folder"])
def test_what_was_not_measured_has_no_metrics(run: TrainRun, tmp_path: Path, source: str) -> None:
    settings: dict[str, Any] = {"checkpoint": {"checkpoint": 0}, "folder": {}}.get(source, {"kind": source})
    out = written(run.model if source == "folder" else run.out, tmp_path / "out", **settings)
    card = (out / "README.md").read_text("utf-8")
    found = check_metadata(card, tmp_path / "card.md")
    read(card, tmp_path / "card.md")
    assert "model-index" not in found
    assert found.get("library_name") == (None if source == "projector" else "transformers")


def test_metrics_of_every_size_are_in_the_index(run: TrainRun, tmp_path: Path) -> None:
    """One that is no number never gets into summary.json."""
    source = changed(run, tmp_path / "run")
    end = {"a": 0.5, "tiny": 1e-30, "whole": 3.0, "large": 1e30}
    edit(source / "summary.json", end=end)
    card = card_of(run, source)
    check_metadata(card, tmp_path / "card.md")
    results = read(card, tmp_path / "card.md").data.eval_results
    assert {result.metric_name: result.metric_value for result in results} == end
    edit(source / "summary.json", end={}, start={})
    assert "model-index" not in check_metadata(card_of(run, source), tmp_path / "card.md")


def test_stages_of_one_name_are_counted(run: TrainRun, tmp_path: Path) -> None:
    source = changed(run, tmp_path / "run", name="align")
    headings = [line for line in card_of(run, source).splitlines() if line.startswith("### ")]
    assert headings == ["### align, stage 1 of 2", "### align, stage 2 of 2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_runs_and_metrics(run: TrainRun, tmp_path: Path, name: str) -> None:
    source = changed(run, tmp_path / "run", name=name)
    edit(source / "summary.json", end={f"a {name}": 0.25, "b": 1.0}, start={f"a {name}": 0.5})
    card = card_of(run, source)
    check_metadata(card, tmp_path / "card.md")
    headings = [line for line in card.partition("\n---\n")[2].splitlines() if line.startswith("#")]
    shown = " ".join(name.split())
    assert headings[0] == f"# {shown or 'A LLaVA model'}"
    assert headings[3:5] == ["### align", f"### {shown}"]
    cells = [re.split(r"(?<!\\)\|", line) for line in card.split("| held-out samples |")[-1].splitlines()[2:4]]
    assert [len(row) for row in cells] == [5, 5]
    assert [row[2:4] for row in cells] == [[" 0.5 ", " 0.25 "], ["  ", " 1 "]]
    if not set(name) & set("\x85\u2028\r"):  # which YAML takes for the ends of lines
        found = read(card, tmp_path / "card.md").data
        assert found.model_name in (name, f"run {name}", "LLaVA")
        assert [result.metric_type for result in found.eval_results] == [f"a {name}", "b"]


def test_no_path_gets_out_of_a_recipe(run: TrainRun, tmp_path: Path) -> None:
    secret = "/home/some one/secret"
    source = changed(
        run,
        tmp_path / "run",
        model={"vision": f"s2@1,2:{secret}/clip", "llm": f"{secret}/my llm/", "projector": "linear"},
        data={"train": f"{secret}/train.json", "image_root": f"{secret}/images", "evaluate": f"{secret}/held out.json"},
        labels={"path": f"s3:/{secret}/it", "wordlist": f"{secret}/words.txt", "encoder": f"open_clip:B/{secret}/x.pt"},
        teacher=f"~{secret}/teacher",
        training_arguments={
            "deepspeed": f"{secret}/zero2.json",
            "optim_args": f"a=1,file={secret}/b.json",
            "lr_scheduler_kwargs": {"deep": [f"{secret}/c", {"deeper": f"~{secret}/d"}]},
            "hub_model_id": "owner/name",
        },
    )  # fmt: skip
    card = card_of(run, source)
    assert "secret" not in card
    assert "some one" not in card
    for kept in (
        "vision: s2@1,2:clip", "llm: my llm", "train: train.json", "image_root: images", "path: it",
        "wordlist: words.txt", "encoder: open_clip:B/x.pt", "teacher: teacher", "deepspeed: zero2.json",
        "optim_args: a=1,file=b.json", "- c", "deeper: d", "hub_model_id: owner/name",
    ):  # fmt: skip
        assert f"{kept}\n" in card
    assert check_metadata(card, tmp_path / "card.md")["model-index"][0]["results"][0]["dataset"] == {
        "type": "held-out", "name": "held out.json (held out)"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "vision", "llm", "bases", "relation"),
    [
        ("model", "openai/clip", "lmsys/vicuna-7b-v1.5", ["openai/clip", "lmsys/vicuna-7b-v1.5"], "finetune"),
        ("model", "s2@1,2:openai/clip", "packaged", ["openai/clip"], "finetune"),
        ("llm", "openai/clip", "lmsys/vicuna-7b-v1.5", ["lmsys/vicuna-7b-v1.5"], None),
        ("projector", "openai/clip", "lmsys/vicuna-7b-v1.5", ["openai/clip", "lmsys/vicuna-7b-v1.5"], "adapter"),
        ("model", "/models/my clip", "../models/vicuna", None, None),
        ("model", "packaged", "a/b/c.gguf", None, None),
        ("llm", "openai/clip", "own--er/llm", None, None),
    ],
)
def test_base_models_are_names_of_the_hub(
    run: TrainRun, tmp_path: Path, kind: str, vision: str, llm: str, bases: list[str] | None, relation: str | None
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run.model, model)
    edit(model / "alignment.json", vision=vision, llm=llm, paths=[])
    folder = open_model_folder(model)
    found = check_metadata(model_card(folder, run.out, kind, "", "", []), tmp_path / "card.md")
    assert (found.get("base_model"), found.get("base_model_relation")) == (bases, relation)
    untrained = check_metadata(model_card(folder, model, kind, "", "", []), tmp_path / "card.md")
    assert (untrained.get("base_model"), untrained.get("base_model_relation")) == (bases, None)


def test_a_part_that_is_a_folder_here_is_no_base_model(
    run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model(Path("models/mine"))
    shutil.move("models/mine-parts", "models/parts")
    edit(model / "alignment.json", vision="models/parts", llm="models/gone", paths=[])
    assert check_metadata(card_of(run, run.out), tmp_path / "card.md").get("base_model") is None
    found = check_metadata(model_card(open_model_folder(model), model, "model", "", "", []), tmp_path / "card.md")
    assert found["base_model"] == ["models/gone"]


@pytest.mark.slow
def test_a_part_that_was_a_folder_where_init_ran_is_no_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere its relative path looks like OWNER/NAME."""
    monkeypatch.chdir(tmp_path)
    tiny_vision(Path("models/clip"))
    tiny_llm(Path("models/vicuna"))
    model = init_model("s2@1,2:models/clip", "models/vicuna", tmp_path / "made")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = check_metadata(model_card(open_model_folder(model), model, "model", "", "", []), tmp_path / "card.md")
    assert found.get("base_model") is None


def test_names_of_the_hub() -> None:
    assert [name for name in ("me/mine", "me/m.i-n_e") if not hub.is_name(name)] == []
    no_names = ("mine", "", "me/mine/x", "./mine", "me/a--b", "me/é", "me/mine.git", "me/mi ne", "me/" + "x" * 97)
    assert [name for name in no_names if hub.is_name(name)] == []


def test_the_card_of_a_projector_names_the_format_that_llavas_own_code_reads(run: TrainRun) -> None:
    card = card_of(run, run.out, kind="projector")
    assert "`--pretrain_mm_mlp_adapter` reads a file of `sea-pipeline export --projector-only --format bin`" in card
