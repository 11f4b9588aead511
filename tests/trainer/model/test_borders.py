"""Errors of other libraries, real ones where they can be had, at every place where they come in: one line each."""

import errno
import importlib
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import accelerate
import datasets
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils.tensorboard import SummaryWriter

from sea_pipeline.core.errors import UserError
from tests.support.own_package import own_package
from tests.support.refused import ran, refused
from tests.support.run_values import values, weights
from tests.support.tiny_models import tiny_llm, tiny_vision
from tests.support.tiny_runs import FinishedRuns, World, tiny_recipe
from trainer.data.dataset import TrainingData
from trainer.data.run_rows import open_conversations
from trainer.export import run as export_run
from trainer.losses import equations
from trainer.model import assemble, checkpoints, folder_check, fsdp, parts
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.borders import border, saving
from trainer.model.load import open_model_folder
from trainer.recipes.recipe import Recipe
from trainer.training import arguments
from trainer.training.align_trainer import AlignTrainer
from trainer.training.callbacks import Screen
from trainer.training.run import train

Raise = Callable[..., Any]


def calling(act: Callable[[], object]) -> Raise:
    """In place of any function."""
    return lambda *_, **__: act()


def raising(make: Callable[[], Exception]) -> Raise:
    def raises(*_: Any, **__: Any) -> None:
        raise make()

    return raises


torch_writer = calling(lambda: torch.save(torch.zeros(99_999), "/dev/full"))
safetensors_writer = calling(lambda: save_file({"a": torch.zeros(9)}, "/dev/full/a"))


def wandb(*_: Any, **__: Any) -> None:
    """A service's own exception, of a package that is made for this test."""
    raise importlib.import_module("wandb.errors").CommError("api key not configured\n  call wandb.login")


ERRORS: dict[str, Raise] = {
    "no_such_package": calling(lambda: importlib.import_module("no_such_package")),
    "/dev/full|inline_container|Parent directory": torch_writer,
    "os error 20|Not a directory|/dev/full": safetensors_writer,
    "api key not configured call wandb.login": wandb,
    "Not a directory": calling(lambda: SummaryWriter("/dev/full/logs")),
    "truth value": calling(lambda: accelerate.utils.str_to_bool("perhaps")),
    "No space left on device": raising(lambda: OSError(errno.ENOSPC, "No space left on device", "/somewhere")),
    "allocate memory": calling(lambda: torch.empty(10**15)),
    "CUDA out of memory": raising(lambda: torch.OutOfMemoryError("CUDA out of memory. Tried 2.00 GiB.\nSee the docs")),
}
"""By what the line says of each."""
MISTAKES = [calling(lambda: equations.word_table(1)), raising(AssertionError)]  # type: ignore[call-arg, arg-type]


PLACES: dict[str, tuple[Any, str]] = {
    "parts": (parts.AutoTokenizer, "from_pretrained"),
    "folder": (folder_check.AutoProcessor, "from_pretrained"),
    "arguments": (arguments, "get_reporting_integration_callbacks"),
    "data": (datasets.Dataset, "from_generator"),
    "model": (AlignedLlava, "from_pretrained"),
    "trainer": (fsdp.Trainer, "create_accelerator_and_postprocess"),
    "optimizer": (AlignTrainer, "get_optimizer_cls_and_kwargs"),
    "step": (Screen, "on_step_end"),
    "worker": (TrainingData, "pixels"),
    "checkpoint": (checkpoints, "save_tensors"),
    "state": (fsdp.Trainer, "_save_optimizer_and_scheduler"),
    "trained model": (AlignedLlava, "save_pretrained"),
}
"""What a library is asked for at each place, in the order of a run."""
TWICE = ("step", "checkpoint", "state")
ALL_ERRORS = "checkpoint"
"""Here all errors come, elsewhere two of them in turn: what becomes of an error does not depend on the place."""


def errors_at(place: str) -> list[str]:
    if place == "worker":  # ending a process that reads data takes seconds
        return [name for name, error in ERRORS.items() if error is wandb]
    every, start = list(ERRORS), 2 * list(PLACES).index(place)
    return every if place == ALL_ERRORS else [every[(start + step) % len(every)] for step in range(2)]


@pytest.fixture
def fake_wandb(tmp_path: Path) -> Iterator[None]:
    files = {"__init__.py": "", "errors.py": "class CommError(Exception):\n    pass\n"}
    with own_package("wandb", files, tmp_path / "site"):
        yield


def two_steps(tiny: World) -> Recipe:
    """With a checkpoint each."""
    return tiny_recipe(tiny, training_arguments={"max_steps": 2, "save_steps": 1, "save_total_limit": 2})


@pytest.fixture
def recipe(tiny: World, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(two_steps(tiny).model_dump(mode="json")))
    return path


def planted(place: str, error: Raise, patch: pytest.MonkeyPatch, out: Path) -> None:
    """Raises at a place; of a step and a checkpoint, at the second one."""
    owner, name = PLACES[place]
    plain = getattr(owner, name)

    def raises(*given: Any, **named: Any) -> Any:
        if place in TWICE and not (out / "checkpoints" / "checkpoint-1").exists():
            return plain(*given, **named)
        return error(*given, **named)

    patch.setattr(owner, name, raises)


def asked(place: str, recipe: Path, out: Path, tmp_path: Path) -> list[object]:
    workers = ["--set", "training_arguments.dataloader_num_workers=1"] if place == "worker" else []
    if place != "parts":
        return ["train", recipe, "--out", out, *workers]
    vision, llm = tiny_vision(tmp_path / "vision"), tiny_llm(tmp_path / "llm")
    return ["init", "--vision", vision, "--llm", llm, "--out", out]


@pytest.mark.usefixtures("fake_wandb")
@pytest.mark.parametrize("place", PLACES)
def test_every_error_is_one_line_and_nothing_is_lost(
    place: str,
    command: Any,
    recipe: Path,
    tiny: World,
    finished: FinishedRuns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    for number, wanted in enumerate(errors_at(place)):
        given = asked(place, recipe, out, tmp_path / str(number))
        with monkeypatch.context() as patch:
            planted(place, ERRORS[wanted], patch, out)
            code, _, stderr = command(*given)
        last = stderr.rpartition("error: ")[2]
        assert code == 1
        assert "Traceback" not in stderr
        assert any(part in " ".join(last.split()) for part in wanted.split("|")), stderr
        if place in TWICE:
            assert [path.name for path in (out / "checkpoints").iterdir()] == ["checkpoint-1"]
    if place == "parts":
        return
    ran(command, "train", recipe, "--out", out)
    whole = finished(two_steps(tiny))
    assert weights(out) == weights(whole) != {}
    assert values(out) == values(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "mistake"),
    list(zip((place for place in PLACES if place != "worker"), cycle(MISTAKES), strict=False)),
)
def test_a_mistake_of_ours_stays_a_traceback(
    place: str, mistake: Raise, command: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = asked(place, recipe, tmp_path / "out", tmp_path / "parts")
    planted(place, mistake, monkeypatch, tmp_path / "out")
    with pytest.raises((TypeError, AssertionError)):
        command(*given)


@pytest.mark.processes
def test_a_bad_image_is_one_line_from_a_worker_too(command: Any, recipe: Path, tiny: World, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(tiny.data.parent / "images", images)
    (images / "03.png").write_bytes(b"no image")
    workers = ["--set", "training_arguments.dataloader_num_workers=1", "--set", f"data.image_root={images}"]
    code, _, stderr = command("train", recipe, "--out", tmp_path / "out", *workers)
    assert code == 1
    assert "Traceback" not in stderr
    line = " ".join(stderr.rpartition("error: ")[2].split())
    assert line.startswith(f"{images / '03.png'}: sample 's3': expected an image; ")


def test_what_makes_and_exports_models_says_so_too(
    command: Any, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble.LlavaForConditionalGeneration, "save_pretrained", safetensors_writer)
    monkeypatch.setattr(export_run, "write_weights", torch_writer)
    for given in (
        asked("parts", tmp_path, tmp_path / "new", tmp_path),
        ["export", tiny.model, "--out", tmp_path / "new"],
    ):
        code, _, stderr = command(*given)
        assert code == 1
        assert "Traceback" not in stderr
        assert f"{tmp_path / 'new'}: cannot be" in " ".join(stderr.split())
        assert not (tmp_path / "new").exists()


def test_a_service_that_is_not_installed_is_named_before_anything_is_read(tiny: World, tmp_path: Path) -> None:
    for service in ("wandb", "mlflow", "nonesuch"):
        recipe = tiny_recipe(tiny, model="nowhere", training_arguments={"report_to": service})
        with refused(match=rf"training_arguments.*{service}"):
            train(recipe, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optim": "sgd", "optim_args": "momentum=x"}, "training_arguments.optim: "),
        ({"adam_beta1": 2.0}, "training_arguments.optim: Invalid beta parameter"),
        ({"fsdp": True, "fsdp_config": "nowhere.json"}, "training_arguments: .*nowhere.json"),
        ({"accelerator_config": {"nonesuch": 1}}, "training_arguments: .*nonesuch"),
    ],
)
def test_arguments_that_only_the_trainer_refuses(
    arguments: dict[str, Any], message: str, tiny: World, tmp_path: Path
) -> None:
    with refused(match=message):
        train(tiny_recipe(tiny, training_arguments=arguments), tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config.dispatch_batches: accelerate would"),
        ({"optim": "lomo"}, "training_arguments: .*LOMO"),
    ],
)
def test_what_other_packages_refuse_leaves_nothing(
    arguments: dict[str, Any], message: str, tiny: World, tmp_path: Path
) -> None:
    with refused(match=message):
        train(tiny_recipe(tiny, training_arguments=arguments), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cut_weight_file_and_a_cut_cache(tiny: World, tmp_path: Path) -> None:
    model = shutil.copytree(tiny.model, tmp_path / "model")
    (file,) = model.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{model}: cannot be loaded: .*; copy the folder again, or make it"):
        train(tiny_recipe(tiny, model=str(model)), tmp_path / "out")
    folder = open_model_folder(tiny.model)
    open_conversations(tiny_recipe(tiny).data, folder)
    kept = Path(os.environ["SEA_PIPELINE_CACHE"]) / "conversations"
    cached = list(kept.rglob("*.arrow"))
    assert cached
    for record in kept.glob("*.json"):  # of older versions there is none
        record.unlink()
    for one in cached:
        one.write_bytes(one.read_bytes()[:300])
    with pytest.raises(
        UserError, match=r"data.json: cannot be read: .*; restore it, or remove (.*), which is"
    ) as found:
        open_conversations(tiny_recipe(tiny).data, folder)
    advised = re.search("remove (.*), which is made again", str(found.value))
    assert advised
    shutil.rmtree(advised[1])
    assert len(open_conversations(tiny_recipe(tiny).data, folder).train) > 0


def test_whose_an_error_is() -> None:
    """Of RuntimeErrors: torch's about tensors are ours, what the machine does and other libraries say is not."""

    def raised(raises: Raise, *, given: bool = False) -> str:
        try:
            with border("place", "advice", given=given):
                raises()
        except UserError:
            return "theirs"
        except Exception:
            return "ours"
        return "nothing"

    shapes = torch.nn.Linear(3, 4)
    assert raised(lambda: shapes(torch.zeros(2, 2))) == "ours"
    assert raised(lambda: shapes(torch.zeros(2, 2)), given=True) == "theirs"
    assert raised(lambda: fsdp.load_state(shapes, {"bias": torch.zeros(3)})) == "ours"
    assert raised(lambda: importlib.import_module("trainer.nonesuch")) == "ours"
    assert raised(lambda: equations.sea(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(()))) == "ours"
    assert raised(lambda: {}["key"], given=True) == "ours"
    for error in ERRORS.values():
        if error is not wandb:
            assert raised(error) == "theirs", error
    with pytest.raises(KeyboardInterrupt), border("place", "advice", given=True):
        raise KeyboardInterrupt


def test_the_reason_of_a_checkpoint_in_pieces(tmp_path: Path) -> None:
    """torch's is no Exception, and holds those of the processes that could not write theirs."""
    why = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match="file: cannot be written: No space left on device; make room, or"):  # noqa: SIM117
        with saving(tmp_path / "file"):
            raise CheckpointException("write", {1: (why, traceback.extract_stack())})


def test_a_disk_that_says_nothing_is_asked(tmp_path: Path) -> None:
    wanted = r"file: cannot be written: .* its disk has [\d,]+ bytes left; make room, or"
    with pytest.raises(UserError, match=wanted) as found, saving(tmp_path / "none" / "file"):
        torch_writer()
    assert "\n" not in str(found.value)
    wanted = "file: cannot be written: Not a directory; choose another folder and run"
    with pytest.raises(UserError, match=wanted), saving(tmp_path / "file"):
        safetensors_writer()
