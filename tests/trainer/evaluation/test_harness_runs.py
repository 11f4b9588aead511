"""The harnesses themselves, run as `eval-commands` says, on a model with the packaged LLM and a random tower."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from sea_pipeline.storage.paths import data_folder
from tests.support.harness_files import HARNESSES, lm_file, lmms_file, with_harnesses
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_vision
from tests.support.tiny_runs import World, tiny_recipe
from trainer.evaluation.harness_results import collect, collect_curves
from trainer.evaluation.harness_tasks import SuiteSettings, eval_steps
from trainer.export.run import ExportSettings, export_model
from trainer.model.assemble import init_model
from trainer.training.run import train

pytestmark = [pytest.mark.processes, pytest.mark.real, with_harnesses]
PHOTOS = 3


class Ran(NamedTuple):
    model: Path
    results: Path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("harness")
    made = init_model(str(tiny_vision(root / "vision")), "packaged", root / "made", dtype="bfloat16")
    model = export_model(ExportSettings(source=made, out=root / "model")).out
    export_model(ExportSettings(source=made, out=root / "model-llm", kind="llm"))
    for step in eval_steps(SuiteSettings(folder=model, suite="smoke", out=root / "results", device="cpu")):
        some = ["--limit", str(PHOTOS), "--log_samples"] if step.column == "photos" else []
        run([sys.executable, *step.command[1:], *some], root)
    return Ran(model, root / "results")


def run(command: list[str], root: Path) -> None:
    """Offline, with caches of its own; lmms-eval exits with 0 whatever happens."""
    environment = os.environ | {"PYTHONPATH": str(HARNESSES), "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr, done.stderr[-4000:]


def test_the_curve_of_a_tiny_stage_2(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed script in a shell, and the table of what it leaves; smoke's questions stand in for MMLU."""
    monkeypatch.chdir(tmp_path)
    arguments = {"max_steps": 4}
    recipe = tiny_recipe(
        tiny, name="mine", learning_rates={"llm": 1e-1}, keep_checkpoints=[0.5], training_arguments=arguments
    )
    train(recipe, Path("runs/mine"))
    for name, start in (("python", ""), ("sea-pipeline", "-m sea_pipeline ")):
        path = f"{HARNESSES}:" if name == "python" else ""
        Path("bin").mkdir(exist_ok=True)
        Path("bin", name).write_text(f'#!/bin/sh\nPYTHONPATH={path}{ROOT} exec {sys.executable} {start}"$@"\n')
        Path("bin", name).chmod(0o755)
    asked = ["eval-commands", "--suite", "smoke"]
    ask = shlex.join(["sea-pipeline", *asked, "runs/mine", "--device", "cpu", "--out", "runs/results"])
    environment = {"PATH": f"bin:{os.environ['PATH']}", "HF_HOME": "hf", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(f"{ask} | sh", shell=True, env=os.environ | environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    assert done.returncode == 0, done.stderr[-4000:]
    found = collect_curves("smoke", Path("runs/results"))
    assert found is not None
    assert found.notes == []
    curve = found.curves["questions"]["mine"]
    assert list(curve) == [0, 2, 4]
    printed = [float(line.split("|")[7]) for line in done.stdout.splitlines() if line.startswith("|smoke_questions")]
    assert [100 * value for value in printed] == pytest.approx(list(curve.values()), abs=0.01)
    assert len(set(printed)) > 1, "the LLM is another at each step"


def test_both_print_a_score(ran: Ran) -> None:
    found = collect("smoke", ran.results)
    assert found.ours["questions"] is not None
    assert found.ours["questions"] > 60, "the packaged LLM knows most of them; chance is 25"
    (file,) = ran.results.rglob("*_results.json")
    assert found.notes == [f"{file}: smoke_photos saw {PHOTOS} of 11 samples; not to be compared"]


def test_the_harness_shows_the_model_what_we_would(ran: Ran) -> None:
    """Its answers are the plain model's to the processor's own template, and its score is that of the answers."""
    spec = importlib.util.spec_from_file_location("photos", data_folder("jobs") / "eval" / "lmms_eval" / "photos.py")
    assert spec is not None
    assert spec.loader is not None
    photos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(photos)
    docs = json.loads((data_folder("jobs") / "samples.json").read_text())[:PHOTOS]
    (samples,) = ran.results.rglob("*_samples_smoke_photos.jsonl")
    told = {row["doc_id"]: row for row in map(json.loads, samples.read_text().splitlines())}
    processor = AutoProcessor.from_pretrained(ran.model)
    model = LlavaForConditionalGeneration.from_pretrained(ran.model, dtype=torch.float32).eval()
    scores = []
    for number, doc in enumerate(docs):
        answer = said(model, processor, photos.photo(doc)[0], photos.question(doc))
        assert told[number]["filtered_resps"] == answer
        scores.append(photos.score(doc, [answer])["caption_words"])
    assert len(answer.split()) > 3
    assert collect("smoke", ran.results).ours["photos"] == pytest.approx(100 * sum(scores) / PHOTOS)


def said(model: Any, processor: Any, image: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    given = processor(images=image, text=text, return_tensors="pt")
    end = processor.tokenizer.eos_token_id
    with torch.no_grad():
        made = model.generate(**given, max_new_tokens=16, do_sample=False, eos_token_id=end, pad_token_id=end)
    answer: str = processor.tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer


def test_the_fixtures_of_other_tests_have_the_harnesses_form(ran: Ran, tmp_path: Path) -> None:
    lmms, lm = (next(ran.results.rglob(pattern)) for pattern in ("*_results.json", "results_*.json"))
    written = (
        (lmms, lmms_file(tmp_path, {"smoke_photos": {"caption_words": 0.5}})),
        (lm, lm_file(tmp_path, 0.5, group="a_group", subtasks={"smoke_questions": (16, 16)})),
    )
    for theirs, ours in written:
        true, made = json.loads(theirs.read_text()), json.loads(ours.read_text())
        assert set(made) <= {*true, "groups"}
        for key in set(made) & set(true):
            assert type(made[key]) is type(true[key]), key
        task = next(iter(true["results"]))
        same = {name: type(value) for name, value in true["results"][task].items()}
        assert {name: type(value) for name, value in made["results"][task].items()} == same
        assert set(made["n-samples"][task]) == set(true["n-samples"][task])
