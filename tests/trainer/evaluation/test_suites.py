"""The commands of a suite, and whether the harnesses of the pinned versions have every task and metric in it."""

import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.paths import data_folder
from tests.support.harness_files import HARNESSES, with_harnesses
from tests.support.programs import Begin, run_file
from tests.support.refused import ran, refused, refuses
from tests.support.run_values import write_run
from tests.support.sentence_piece import vicuna_like
from tests.support.tiny_models import tiny_vision
from tests.support.tiny_runs import World, tiny_recipe
from trainer.evaluation.harness_tasks import Column, Step, Suite, SuiteSettings, eval_steps, suite_columns, suite_pins
from trainer.export.run import ExportSettings, export_model
from trainer.model.assemble import init_model
from trainer.model.run_record import read_run
from trainer.towers import S2TowerConfig

SUITES: tuple[Suite, ...] = ("sea", "basic", "smoke")
DEFAULT = ("lmms_eval_specific_kwargs", "default")
OWN = data_folder("jobs") / "eval"


@pytest.fixture(scope="module")
def _exported(_made: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(ExportSettings(source=_made.model, out=tmp_path_factory.mktemp("exported") / "x")).out


@pytest.fixture
def exported(_exported: Path, tmp_path: Path) -> Path:
    """To be spoiled."""
    return Path(shutil.copytree(_exported, tmp_path / "exports" / "x"))


def with_config(folder: Path, text: str) -> Path:
    """A folder that holds a config.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    return folder


def steps(folder: Path, suite: Suite, **settings: Any) -> dict[str, Step]:
    return {step.column: step for step in eval_steps(SuiteSettings.of(folder=folder, suite=suite, **settings))}


def test_the_commands_of_sea(exported: Path) -> None:
    found = steps(exported, "sea")
    assert list(found) == ["", *suite_columns("sea")]
    assert shlex.join(found[""].command) == f"sea-pipeline export {exported} --out {exported}-llm --llm-only"
    assert shlex.join(found["GQA"].command) == (
        f"python -m lmms_eval --model llava_hf --model_args pretrained={exported},dtype=bfloat16,device_map=cuda "
        f"--device cuda --batch_size 1 --tasks gqa --output_path {exported}-results"
    )
    assert shlex.join(found["MMLU"].command) == (
        f"python -m lm_eval --model hf --model_args pretrained={exported}-llm,dtype=bfloat16 --device cuda "
        f"--batch_size 8 --tasks mmlu --num_fewshot 5 --output_path {exported}-results"
    )
    assert f"--tasks textvqa_val_ocr --include_path {OWN / 'lmms_eval'}" in shlex.join(found["TextVQA"].command)
    assert "OPENAI_API_KEY" in found["MM-Vet"].note
    for column in ("VQAv2", "VizWiz", "MMB"):
        assert "server" in found[column].note


def test_several_gpus_and_a_cpu(exported: Path, tmp_path: Path) -> None:
    found = steps(exported, "sea", gpus=8, llm=with_config(tmp_path / "llm", "{}"), out=tmp_path / "out")
    assert "" not in found, "the LLM is there"
    for name, step in found.items():
        assert step.command[:4] == ("accelerate", "launch", "--num_processes", "8")
        assert not {"--device", "device_map"} & set(shlex.join(step.command).replace("=", " ").split()), name
        assert step.command[-1] == str(tmp_path / "out")
    on_cpu = steps(exported, "smoke", device="cpu")
    assert f"pretrained={exported},dtype=float32,device_map=cpu" in on_cpu["photos"].command


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["another value", "another family", "no weights"])
def test_the_llm_of_another_model_is_not_taken(damage: str, exported: Path, command: Any) -> None:
    """Such as of the one that had the name before; `--llm` takes it."""
    whole = load_file(exported / "model.safetensors")
    whole[next(name for name in whole if name.endswith("layers.0.mlp.down_proj.weight"))][0, 0] = math.nan
    save_file(whole, exported / "model.safetensors", metadata={"format": "pt"})
    alone = export_model(ExportSettings(source=exported, out=exported.with_name("x-llm"), kind="llm")).out
    assert list(steps(exported, "smoke")) == ["questions", "photos"], "it is there, and its own, though it has diverged"
    file = alone / "model.safetensors"
    weights = load_file(file)
    if damage == "another value":
        weights["model.layers.1.mlp.down_proj.weight"][-1, -1] += 1e-3
    elif damage == "another family":
        weights = {name.replace("layers", "h"): value for name, value in weights.items()}
    file.unlink()
    if damage != "no weights":
        save_file(weights, file, metadata={"format": "pt"})
    assert list(steps(exported, "smoke", llm=alone)) == ["questions", "photos"]
    assert list(steps(exported, "basic")) == list(suite_columns("basic")), "BASIC asks no LLM alone"
    said = f"{alone}: expected the LLM of {exported}; found other weights, or none that can be read; remove it"
    refuses(command, said, "eval-commands", exported, "--suite", "smoke")
    shutil.rmtree(alone)
    assert list(steps(exported, "smoke")) == ["", "questions", "photos"], "it is exported anew"


def test_a_tower_of_ours_starts_the_harness_in_a_process_that_knows_it(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    with_config(exported, json.dumps(config | {"vision_config": None}))
    assert steps(exported, "sea")["GQA"].command[:3] == ("python", "-m", "lmms_eval"), "it does not say its tower"
    config["vision_config"]["model_type"] = S2TowerConfig.model_type
    with_config(exported, json.dumps(config))
    found = steps(exported, "sea")
    assert found["GQA"].command[:3] == ("python", "-P", "-c")
    assert "import runpy, trainer.towers; runpy.run_module('lmms_eval'" in found["GQA"].command[3]
    assert found["MMLU"].command[:3] == ("python", "-m", "lm_eval")
    with pytest.raises(UserError, match="--gpus 2: expected 1, as transformers lacks the tower"):
        steps(exported, "sea", gpus=2)


@pytest.mark.parametrize("place", [".", "inner/.."])
def test_a_folder_without_a_name_is_called_what_it_is(
    exported: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (exported / "inner").mkdir()
    monkeypatch.chdir(exported)
    found = steps(Path(place), "smoke")
    assert shlex.join(found[""].command) == f"sea-pipeline export {place} --out {exported}-llm --llm-only"
    assert found["photos"].command[-2:] == ("--output_path", f"{exported}-results")


def test_a_comma_is_refused_only_where_a_harness_reads_it(exported: Path, tmp_path: Path) -> None:
    assert steps(exported, "basic", llm=tmp_path / "a,b") == steps(exported, "basic")
    with pytest.raises(UserError, match="a,b: expected a path without a comma"):
        steps(exported, "sea", llm=tmp_path / "a,b")


def test_the_commands_as_a_script_and_as_json(command: Any, exported: Path) -> None:
    """Comments and commands only, as a script is meant for a shell."""
    stdout = ran(command, "eval-commands", exported, "--suite", "basic")
    lines = [line for line in stdout.splitlines() if line and not line.startswith("#")]
    assert lines == [shlex.join(step.command) for step in steps(exported, "basic").values()]
    assert "# lmms-eval 0.7.3: pip install lmms-eval==0.7.3 decord" in stdout
    assert "lm-eval 0.4" not in stdout, "BASIC has no MMLU"
    assert f"# MM-Vet: {suite_columns('basic')['MM-Vet'].note}" in stdout
    found = json.loads(ran(command, "eval-commands", exported, "--suite", "smoke", "--device", "cpu", "--json"))
    assert set(found) == {"suite", "harnesses", "steps"}
    assert found["harnesses"]["lm_eval"]["version"] == "0.4.13"
    assert [step["column"] for step in found["steps"]] == ["", "questions", "photos"]
    assert shlex.split(found["steps"][2]["shell"]) == found["steps"][2]["command"]


def test_what_is_refused_in_one_line(command: Any, exported: Path, tmp_path: Path) -> None:
    llm = with_config(tmp_path / "llm", '{"model_type": "llama"}')
    bare = with_config(tmp_path / "bare", (exported / "config.json").read_text())
    broken = with_config(tmp_path / "broken", "{")
    qwen = with_config(tmp_path / "run" / "model", '{"model_type": "qwen2_vl"}')
    attached(exported, tmp_path / "done")
    (tmp_path / "a,b").symlink_to(exported)
    for arguments, said in (
        ([], "expected a model's folder, or --collect RESULTS"),
        ([exported, "--baseline", exported], "--baseline: is for --collect"),
        ([tmp_path / "a,b"], "a,b: expected a path without a comma"),
        ([tmp_path / "nowhere"], "nowhere: expected a LLaVA folder, such as sea-pipeline export writes"),
        ([broken], "broken/config.json: cannot be read as JSON"),
        ([exported, "--device", "auto"], "--device: string should match pattern"),
        ([exported, "--device", "cuda:0,batch_size=9"], "--device: string should match pattern"),
        ([exported, "--collect", tmp_path], "FOLDER: for the commands alone; leave it out with --collect"),
        (["--collect", tmp_path, "--gpus", 1, "--llm", llm], "--llm, --gpus: for the commands alone"),
        (["--collect", tmp_path, "--device", "cuda", "--out", llm], "--out, --device: for the commands alone"),
        ([llm], "expected a LLaVA folder; found model_type 'llama'; an LLM goes to --llm"),
        ([qwen], "found model_type 'qwen2_vl'; run lmms-eval itself, with its --model for it"),
        ([tmp_path / "done"], f"is a run of model: {{attach: …}}, which keeps its end alone; give that, {tmp_path}"),
        ([bare], "expected a chat template; found none; write the folder with sea-pipeline export"),
    ):
        refuses(command, said, "eval-commands", *arguments)


def attached(exported: Path, run: Path) -> Path:
    """A run that attached to a LLaVA-1.5."""
    shutil.copytree(exported, run / "model")
    (run / "run.json").write_text('{"recipe": {"model": {"attach": "llava-1.5-7b-hf"}}}')
    return run / "model"


def test_the_llm_of_a_model_that_a_run_attached_to_is_left_out(command: Any, exported: Path, tmp_path: Path) -> None:
    """Nothing exports it; who has it can name it."""
    model = attached(exported, tmp_path / "run")
    code, stdout, stderr = command("eval-commands", model, "--suite", "smoke")
    assert [code, "lm_eval" in stdout, stdout.count("-m lmms_eval")] == [0, False, 1]
    assert "questions is left out, because export takes no LLM out of a model that a run attached to" in stderr
    assert list(steps(model, "smoke", llm=exported)) == ["questions", "photos"]
    with pytest.raises(UserError, match=r"--llm .*lm: expected the folder of an LLM; found no config\.json"):
        steps(model, "smoke", llm=tmp_path / "lm")


# Along a run


def as_run(tiny: World, folder: Path, kept: tuple[int, ...]) -> Path:
    """What a run has written that the commands are made of."""
    recipe = tiny_recipe(tiny, name="sea-figure3-sea").model_dump(mode="json")
    folder.mkdir(parents=True)
    write_run(folder, {"recipe": recipe, "fields": {"model": {"weights": "0"}}})
    for step in kept:
        (folder / "kept" / f"checkpoint-{step}").mkdir(parents=True)
    return folder


def test_the_commands_along_a_run(tiny: World, command: Any, tmp_path: Path) -> None:
    run = as_run(tiny, tmp_path / "finetune", (100, 20))
    found = eval_steps(SuiteSettings.of(folder=run, suite="sea"))
    root = f"{run}-results/sea-figure3-sea"
    assert [shlex.join(step.command) for step in found[2:4]] == [
        f"sea-pipeline export {run} --checkpoint 20 --out {root}/step-20-llm --llm-only",
        f"python -m lm_eval --model hf --model_args pretrained={root}/step-20-llm,dtype=bfloat16 --device cuda "
        f"--batch_size 8 --tasks mmlu --num_fewshot 5 --output_path {root}/step-20",
    ]
    notes = [f"step 0; {suite_columns('sea')['MMLU'].note}", "step 20", "step 100"]
    assert [step.note for step in found if step.column] == notes
    assert {step.column for step in found} == {"", "MMLU"}
    (run / "summary.json").write_text('{"steps": 200}')
    assert len(eval_steps(SuiteSettings.of(folder=run, suite="sea"))) == len(found) + 2
    stdout = ran(command, "eval-commands", run, "--suite", "smoke", "--device", "cpu")
    assert "lmms" not in stdout
    assert stdout.count("--tasks smoke_questions") == 4


def test_what_is_refused_along_a_run(tiny: World, tmp_path: Path) -> None:
    run = as_run(tiny, tmp_path / "run", (100,))
    llm = with_config(tmp_path / "out" / "sea-figure3-sea" / "step-100-llm", "{}")
    row = "| settings and inputs together | `{}` |\n"
    own = row.format(read_run(run, finished=False).fingerprint)
    (llm / "README.md").write_text(row.format("of the stage before") + own)
    there = eval_steps(SuiteSettings.of(folder=run, suite="smoke", out=tmp_path / "out"))
    assert [step.column for step in there] == ["", "questions", "questions"], "this LLM is exported already"
    (llm / "README.md").write_text(own + row.format("of a later stage"))
    for settings, said in (
        ({"suite": "basic"}, "--suite basic: its columns show images"),
        ({"suite": "smoke", "llm": llm}, "--llm: is for one model"),
        ({"suite": "smoke", "out": tmp_path / "a,b"}, "a,b/sea-figure3-sea: expected a path without a comma"),
        ({"suite": "smoke", "out": tmp_path / "out"}, f"{llm}: is not of the run {run}; choose another --out"),
        ({"suite": "smoke", "folder": as_run(tiny, tmp_path / "b", ())}, "expected a run that has kept checkpoints"),
    ):
        with refused(said):
            eval_steps(SuiteSettings.of(**{"folder": run} | settings))


# The harnesses themselves


def read_task(path: Path) -> dict[str, Any]:
    """A task's YAML over what it includes; functions as their names."""

    class Loader(yaml.SafeLoader):
        """With the harnesses' tag."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    content: dict[str, Any] = yaml.load(path.read_text("utf-8"), Loader)
    return {**read_task(path.parent / content.pop("include")), **content} if "include" in content else content


@cache
def tasks_of(harness: str) -> dict[str, list[Path]]:
    """The harness's files by the task or group that they define."""
    found: dict[str, list[Path]] = {}
    for path in (HARNESSES / harness / "tasks").rglob("*.yaml"):
        for name in re.findall(r"""^(?:task|group): ("?)([^"\s]+)\1\s*$""", path.read_text("utf-8"), re.MULTILINE):
            found.setdefault(name[1], []).append(path)
    return found


def task_file(harness: str, task: str) -> Path:
    """Of a task or group, ours or the harness's."""
    own = OWN / harness / f"{task}.yaml"
    (found,) = [own] if own.is_file() else tasks_of(harness)[task]
    return found


@with_harnesses
def test_the_pinned_versions_are_what_the_tests_look_at() -> None:
    there = {each.name.replace("-", "_"): each.version for each in distributions(path=[str(HARNESSES)])}
    pins = suite_pins("sea")
    assert {name: there[name] for name in pins} == {name: pin.version for name, pin in pins.items()}
    for pin in pins.values():
        assert pin.version in pin.install


@pytest.mark.slow
@with_harnesses
@pytest.mark.parametrize("name", sorted({name for suite in SUITES for name in suite_columns(suite)}))
def test_the_harness_has_the_task_and_its_metric(name: str) -> None:
    column: Column = {name: column for suite in SUITES for name, column in suite_columns(suite).items()}[name]
    task = read_task(task_file(column.harness, column.task))
    metrics = task.get("metric_list") or task["aggregate_metric_list"]
    assert column.metric in [each["metric"] for each in metrics]


@with_harnesses
@pytest.mark.parametrize(
    ("task", "like", "differs"),
    [
        ("textvqa_val_ocr", "textvqa_val", {("metric_list",), (*DEFAULT, "ocr")}),
        ("mmvet_llava", "mmvet", {("generation_kwargs", "temperature"), (*DEFAULT, "pre_prompt")}),
    ],
)
def test_our_variant_of_a_task_differs_only_where_it_says_so(task: str, like: str, differs: set[Any]) -> None:
    """Functions of the harness's module; other models' settings do not matter."""
    stock = task_file("lmms_eval", like)
    package = f"lmms_eval.tasks.{stock.parent.name}."
    own = leaves(read_task(task_file("lmms_eval", task)))
    ours = {place: str(value).replace(package, "") for place, value in own}
    theirs = {place: str(value) for place, value in leaves(read_task(stock))}
    others = {place for place in theirs if place[0] == "lmms_eval_specific_kwargs" and place[1] != "default"}
    changed = {place for place in {*ours, *theirs} - others if ours.get(place) != theirs.get(place)}
    assert changed == {("task",), *differs}


def leaves(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(value, dict):
        yield place, value
        return
    for key, inner in value.items():
        yield from leaves(inner, (*place, key))


def test_a_bos_that_template_and_tokenizer_both_write_is_written_once(program: Begin, tmp_path: Path) -> None:
    """lmms-eval has the processor tokenise what the template wrote; the printed command starts it as ours."""
    vicuna_like(tmp_path / "llm")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "llm")).save_pretrained(tmp_path / "llm")
    model = init_model(str(tiny_vision(tmp_path / "tower")), str(tmp_path / "llm"), tmp_path / "model")
    out = export_model(ExportSettings.of(source=model, out=tmp_path / "out")).out
    for gpus in (1, 2):
        assert "-m trainer.lmms_eval" in shlex.join(steps(out, "sea", gpus=gpus)["GQA"].command)
    (tmp_path / "begin.py").write_text("""
import sys
from PIL import Image
from transformers import AutoProcessor
from trainer.lmms_eval import write_bos_once
processor = AutoProcessor.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
def begin(text):
    ids = processor(images=Image.new("RGB", (9, 9)), text=text)["input_ids"]
    return (ids[0] if isinstance(ids[0], list) else ids)[:2].count(processor.tokenizer.bos_token_id)
bare = text.removeprefix("<s>")
counts = [begin(each) for each in (text, [text], bare)]
write_bos_once()
print(counts, [begin(each) for each in (text, [text], bare)])
""")
    ran = program(tmp_path / "begin.py", out, main=run_file)
    assert (ran.wait(), ran.stdout) == (0, "[2, 2, 1] [1, 1, 1]\n"), ran.stderr
