"""Kinds of what training leaves: a teacher's targets, a run that was stopped, one that is finished."""

import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz.folders import brought_back, damaged, refuse_differing
from tests.fuzz.mutations import harmed
from tests.fuzz.verdicts import REFUSED, UNCLEAR, Ended, FaultError, command, lost, told
from tests.fuzz.worlds import World

STOPPED_AT = 4


def targets(world: World, folder: Path, random: random.Random) -> str:
    """A folder of a teacher's targets: damaged, read by all, and brought back by its command."""
    from trainer.targets.store import open_targets

    kept, other, model = _taught(world)
    whole, truth, out = _files(kept), _vectors(open_targets(kept)), folder / "targets"
    shutil.copytree(kept, out)
    done = damaged(out, random, [path for path in other.rglob("*") if path.is_file()])
    for asked in ("status", "verify"):
        command(asked, out)
    store = told(done, lambda: open_targets(out))
    if not isinstance(store, str):
        vectors = told(done, lambda: _vectors(store))
        if not isinstance(vectors, str) and vectors != truth:
            raise lost(f"{done}: the targets open, with other values than were written")

    def again() -> Ended:
        return _teach(world, model, out)

    end = brought_back(again, out, done)
    refuse_differing(_files(out), whole, f"{done}: run again ({end})")
    return end


def _taught(world: World) -> tuple[Path, Path, Path]:
    """A finished folder, another one, and the model of both; made once."""
    from tests.support.tiny_models import tiny_llm, tiny_vision
    from trainer.model.assemble import init_model

    root = world.root / "teaching"
    if not (root / "model").exists():
        tiny_vision(root / "vision")
        tiny_llm(root / "llm", num_hidden_layers=4, initializer_range=0.3)
        init_model(str(root / "vision"), str(root / "llm"), root / "model")
        for out, codec in ((root / "kept", "int8"), (root / "other", "float16")):
            ended = _teach(world, root / "model", out, codec)
            assert ended.code == 0, ended
    return root / "kept", root / "other", root / "model"


def _teach(world: World, model: Path, out: Path, codec: str = "int8") -> Ended:
    data = world.training.data
    return command(
        "teacher", "--model", model, "--data", data, "--image-root", data.parent / "images", "--codec", codec,
        "--shard-size", 4, "--batch-size", 3, "--device", "cpu", "--max-bad", 0.5, "--out", out,
    )  # fmt: skip


def _vectors(store: Any) -> dict[str, bytes]:
    return {name: b"".join(part.tobytes() for part in _arrays(store[name])) for name in store}


def _arrays(values: Any) -> list[Any]:
    found = [getattr(values, name) for name in values.__dataclass_fields__]
    return [each for each in found if hasattr(each, "tobytes")]


def _files(folder: Path) -> dict[str, bytes]:
    """All that a folder holds; of commits, which hold times, the names."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".tmp" not in path.parts]
    held = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: b"" if name.startswith(("commits/", "logs/")) else data for name, data in held.items()}


def trained_on(world: World, folder: Path, random: random.Random) -> str:
    """Labels that a run trains on: it has the weights that it would have had, or says what is wrong with them."""
    from tests.support.run_values import weights

    kept = world.root / "briefly"
    if not (kept / "summary.json").exists():
        _train(world, kept, _brief(world, world.training.labels))
    labels = shutil.copytree(world.training.labels, folder / "labels")
    others = [path for path in world.labels.rglob("*") if path.is_file()]
    done = damaged(labels, random, others)
    ended = told(done, lambda: _train(world, folder / "out", _brief(world, labels)))
    if isinstance(ended, str):
        return REFUSED
    if weights(folder / "out") != weights(kept):
        raise lost(f"{done}: trained on, they give other weights than they would have given")
    return "trained"


def stopped(world: World, folder: Path, random: random.Random) -> str:
    """A run that a kill has stopped: it goes on to the weights that it would have had, or says why it does not."""
    from tests.support.run_values import copied, weights

    whole = _trained(world)
    out = copied(whole, folder / "out", STOPPED_AT)
    done = damaged(out, random, [path for path in whole.rglob("*") if path.is_file()])
    ended = told(done, lambda: _train(world, out))
    if isinstance(ended, str):
        return REFUSED
    if weights(out) != weights(whole):
        raise lost(f"{done}: gone on with, the run has other weights than it would have had")
    return "went on"


def finished(world: World, folder: Path, random: random.Random) -> str:
    """A finished run: reported, gone on with and exported, whatever of it is damaged.

    Model folders are the stock form, which has no checksums: a bit of a weight is not seen.
    """
    whole, out = _trained(world), folder / "out"
    shutil.copytree(whole, out)
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    path = random.choice(paths)
    done = f"{path.relative_to(out)}: {harmed(path, random, paths)}"
    ended = [
        command("report", out, "--images", 0, "--out", folder / "report.html"),
        command("export", out, "--out", folder / "export"),
    ]
    again = told(done, lambda: _train(world, out))
    if path.name == "summary.json" and isinstance(again, str) and "summary.json" not in again:
        raise FaultError(UNCLEAR, f"{done}: {again}")
    return REFUSED if isinstance(again, str) or any(each.code for each in ended) else "went on"


def _trained(world: World) -> Path:
    """A finished run of six steps with its checkpoints; made once."""
    out = world.root / "run"
    if not (out / "summary.json").exists():
        _train(world, out)
    return out


def _train(world: World, out: Path, recipe: Any = None) -> object:
    from tests.support.tiny_runs import colours
    from trainer.training.run import train

    with colours():
        return train(recipe or _recipe(world), out)


def _brief(world: World, labels: Path) -> Any:
    from tests.support.tiny_runs import tiny_recipe

    arguments = {"max_steps": 1, "save_strategy": "no"}
    return tiny_recipe(world.training, labels={"path": str(labels)}, training_arguments=arguments)


@cache
def _recipe(world: World) -> Any:
    from tests.support.tiny_runs import tiny_recipe

    arguments = {"max_steps": 6, "save_steps": 2}
    loss = {"sea": {"weight": "auto"}, "measure_every": 1}
    return tiny_recipe(world.training, loss=loss, training_arguments=arguments, keep_checkpoints=[2])


KINDS: dict[str, Callable[[World, Path, random.Random], str]] = {
    "targets": targets, "trained on": trained_on, "stopped": stopped, "finished": finished,
}  # fmt: skip
