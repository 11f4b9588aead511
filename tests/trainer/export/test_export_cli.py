"""`export` as typed: its table, its refusals, the hub, which is mocked; and what has nothing to export."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import AutoTokenizer

from tests.support.initialised import edit
from tests.support.refused import ran, refused, refuses
from tests.support.run_values import tensors
from tests.support.tiny_models import tiny_model
from trainer.export.checks import check_export
from trainer.export.run import ExportSettings, export_model
from trainer.model import hub
from trainer.training.run import TrainRun


class Api:
    """Stands for the hub's."""

    calls: list[tuple[str, dict[str, Any]]]
    error: Exception | None = None

    def __init__(self) -> None:
        Api.calls = []

    def create_repo(self, name: str, **options: Any) -> None:
        self.calls.append((name, options))

    def upload_folder(self, **options: Any) -> str:
        if self.error is not None:
            raise self.error
        options["bars"] = not are_progress_bars_disabled()
        options["files"] = sorted(file.name for file in options["folder_path"].iterdir())
        self.calls.append(("upload", options))
        return f"the-hub/{options['repo_id']}"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "get_token", lambda: "a token")
    monkeypatch.setattr(Api, "error", None)
    return Api


@pytest.mark.slow
def test_push(api: type[Api], command: Any, run: TrainRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("export", run.out, "--out", tmp_path / "quiet", "--push", "me/mine", "--quiet")[0] == 0
    assert not api.calls[-1][1]["bars"]
    stdout = ran(command, "export", run.out, "--out", out, "--push", "me/mine")
    assert "the-hub/me/mine" in stdout
    created, (_, upload) = api.calls
    assert created == ("me/mine", {"private": True, "exist_ok": True})
    assert (upload["repo_id"], upload["bars"]) == ("me/mine", True)
    assert upload["folder_path"] == out
    assert upload["files"] == sorted(file.name for file in out.iterdir())
    assert {"README.md", "model.safetensors"} <= set(upload["files"])


def test_a_failed_push_is_one_line_and_leaves_the_folder(
    api: type[Api], command: Any, run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "error", ConnectionError("no\nroute"))
    out = tmp_path / "my model"
    said = "complete, but was not uploaded (ConnectionError: no route); "
    _, _, advised = refuses(command, said, "export", run.out, "--out", out, "--push", "me/mine").partition("with: ")
    words = shlex.split(advised)
    assert words[:6] == ["hf", "upload", "--private", "me/mine", str(out), "."]
    deleted = words[7::2]
    assert words[6::2] == ["--delete"] * len(deleted)
    assert "model-?????-of-?????.safetensors" in deleted
    assert not any((out / name).exists() for name in deleted)
    assert (out / "README.md").is_file()


def test_nothing_is_pushed_unasked(api: type[Api], command: Any, run: TrainRun, tmp_path: Path) -> None:
    api.calls = []
    assert command("export", run.out, "--out", tmp_path / "out")[0] == 0
    assert api.calls == []


def test_json(command: Any, run: TrainRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, _ = command("export", run.out, "--out", out, "--projector-only", "--json")
    found = json.loads(stdout)
    assert (code, stdout.count("\n")) == (0, 1)
    assert set(found) == {"folder", "kind", "what", "tensors", "bytes", "reader", "notes", "pushed"}
    assert (found["folder"], found["kind"], found["tensors"], found["pushed"]) == (str(out), "projector", 4, None)
    assert 0 < found["bytes"] < (out / "mm_projector.safetensors").stat().st_size


def test_the_table(command: Any, run: TrainRun, tmp_path: Path) -> None:
    stdout = ran(command, "export", run.out, "--out", tmp_path / "out")
    assert "LLaVA: clip_vision_model, LlamaForCausalLM" in stdout
    assert f"tensors  {len(tensors(run.model))}, " in stdout
    assert "transformers 5, transformers 4 (tested: 4.57.6), vLLM (tested: 0.33.0)" in stdout


def test_what_is_refused_in_one_line(
    command: Any, run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    (loop := tmp_path / "loop").symlink_to(loop)
    for source, options, said in (
        (loop, [], "loop: there is no such folder; expected a model"),
        (run.out, ["--llm-only", "--projector-only"], "expected one of them"),
        (run.out, ["--projector-only", "--compat", 4], "--compat 4: makes no difference"),
        (run.out, ["--names", 4, "--compat", 4], "expected one of them"),
        (run.out, ["--rescale-projector"], "such as Gemma; found 'llama'; leave it out"),
        (run.out, ["--push", "me/mine"], "nobody is logged in"),
    ):
        refuses(command, said, "export", source, "--out", tmp_path / "out", *options)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model/generation_config.json", "model/alignment.json"])
def test_a_damaged_file_is_named(command: Any, run: TrainRun, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run.out, damaged)
    for text, said in (("{", "cannot be read as JSON"), ("[]", "expected a JSON object; found []")):
        (damaged / name).write_text(text)
        refuses(command, f"{damaged / name}: {said}", "export", damaged, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_run_of_another_version_is_no_traceback(command: Any, run: TrainRun, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run.out, old)
    for name, key in (("run.json", "recipe"), ("run.json", "versions"), ("summary.json", "end")):
        whole = (old / name).read_text()
        (old / name).write_text(json.dumps({each: value for each, value in json.loads(whole).items() if each != key}))
        said = f"{old}: expected '{key}' in run.json and summary.json"
        refuses(command, said, "export", old, "--out", tmp_path / "out")
        (old / name).write_text(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("stated", "ends"), [({}, None), ({"eos_token_id": None}, None), ({"eos_token_id": 2}, [2])])
def test_a_tokenizer_without_an_end_gives_none(tmp_path: Path, stated: dict[str, Any], ends: list[int] | None) -> None:
    model = tiny_model(tmp_path / "model")
    edit(model / "tokenizer_config.json", eos_token=None)
    (model / "chat_template.jinja").write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    (model / "generation_config.json").write_text(json.dumps(stated | {"do_sample": False}))
    out = export_model(ExportSettings(source=model, out=tmp_path / "out")).out
    assert AutoTokenizer.from_pretrained(out).eos_token is None
    written = json.loads((out / "generation_config.json").read_text())
    assert written == {"do_sample": False} | ({} if ends is None else {"eos_token_id": ends})


def test_a_run_is_pointed_at_its_model(command: Any, run: TrainRun, tmp_path: Path) -> None:
    refuses(command, f"give {run.model}", "evaluate", run.out, "--data", tmp_path / "none.json")


def test_the_old_name_of_names_says_the_new_one(command: Any, run: TrainRun, tmp_path: Path) -> None:
    code, _, stderr = command("export", run.out, "--out", tmp_path / "out", "--compat", 4)
    assert code == 0
    assert "--compat is --names and --rescale-projector now; the old name goes with version 0.2" in stderr
    assert not command("export", run.out, "--out", tmp_path / "new", "--names", 4)[2]


def attached(run: Path, kind: str, *, finished: bool = True) -> Path:
    """A run as `train` leaves it, but for its weights."""
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"recipe": {"model": {"attach": "models/start"}}}))
    if finished:
        (run / "model").mkdir()
        parts: dict[str, Any] = {"text_config": {}, "vision_config": {}}
        (run / "model" / "config.json").write_text(json.dumps({"model_type": kind} | parts))
    return run


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("inner", ["", "model"])
def test_there_is_nothing_to_export(kind: str, inner: str, tmp_path: Path) -> None:
    run = attached(tmp_path / "my run", kind)
    said = f"{run}/model is in its family's own form already, which its readers take; nothing is to export"
    with refused(start=said):
        check_export(ExportSettings(source=run / inner, out=tmp_path / "out"))
    with refused(said, start=said):
        check_export(ExportSettings(source=run / inner, out=tmp_path / "out", push="me/mine"))
    with refused(said, start="--checkpoint 2: such a run keeps its end alone; "):
        check_export(ExportSettings(source=run, out=tmp_path / "out", checkpoint=2))


def test_the_line_for_an_upload_can_be_run(tmp_path: Path) -> None:
    run = attached(tmp_path / "my run", "qwen2_5_vl")
    with pytest.raises(Exception, match="use it as it is: hf upload") as found:
        check_export(ExportSettings(source=run, out=tmp_path / "out", push="me/mine"))
    words = shlex.split(str(found.value).partition("as it is: ")[2])
    assert words == ["hf", "upload", "--private", "me/mine", str(run / "model")]


def test_an_unfinished_one_is_gone_on_with(tmp_path: Path) -> None:
    run = attached(tmp_path / "run", "llava", finished=False)
    with refused(f"run the same sea-pipeline train command again, which ends in {run}/model", start=f"{run}: "):
        check_export(ExportSettings(source=run, out=tmp_path / "out"))


def test_a_folder_of_another_family_is_no_llava_to_make(tmp_path: Path) -> None:
    folder = attached(tmp_path / "run", "gemma3") / "model"
    folder = folder.rename(tmp_path / "gemma")
    with refused("in its family's own form already", start=f"{folder} "):
        check_export(ExportSettings(source=folder, out=tmp_path / "out"))
