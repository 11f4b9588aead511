"""Kinds of output folders: a file of a finished one is damaged, and then everything that reads the folder is asked."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sea_pipeline import label_cache, open_labels
from tests.fuzz.mutations import harmed, mutated
from tests.fuzz.verdicts import REFUSED, UNCLEAR, Ended, FaultError, command, lost, telling, told
from tests.fuzz.worlds import World, same_labels
from tests.support.contents import content, rows

SAID = ("restore it", "remove it, and", "delete it and")
"""How the lines say what to do."""


def labels(world: World, folder: Path, random: random.Random) -> str:
    """A folder of labels, finished or not: damaged, read by all, and brought back by its command."""
    inputs = _input(world)
    out = folder / "labels"
    whole, truth = _kept(world, inputs)
    shutil.copytree(world.root / "kept", out)
    is_finished = random.random() < 0.8
    if not is_finished:
        (out / "manifest.json").unlink()
        (out / "words.parquet").unlink()
    others = [path for path in (world.root / "other").rglob("*") if path.is_file()]
    done = damaged(out, random, others)
    for asked in ("status", "verify", "inspect"):
        command(asked, out)
    store = told(done, lambda: open_labels(out))
    if not isinstance(store, str):
        same_labels(store, truth, done)
        if not command("verify", out).code and (out / "commits").is_dir():
            refuse_differing(content(out), whole, f"{done}: verify says that all is well")

    def again() -> Ended:
        return world.label(inputs, out)

    end = brought_back(again, out, done)
    refuse_differing(content(out), whole, f"{done}: run again ({end})")
    same_labels(open_labels(out), truth, done)
    return end


def _input(world: World) -> Path:
    """The photos of the world, and one that is none, for the quarantine."""
    inputs = world.root / "kept-photos"
    if not inputs.exists():
        shutil.copytree(world.folder, inputs)
        (inputs / "none.png").write_bytes(b"")
    return inputs


def _kept(world: World, inputs: Path) -> tuple[dict[str, bytes], dict[str, tuple[Any, ...]]]:
    """What the whole folder holds and says; and another run's, in the same files."""
    if not (world.root / "kept").exists():
        assert world.label(inputs, world.root / "kept").code == 0
        other = command("label", "--images", inputs, "--out", world.root / "other", *world.options(**{"top-n": 2}))
        assert other.code == 0, other
    return content(world.root / "kept"), rows(open_labels(world.root / "kept"))


def refuse_differing(found: dict[str, bytes], whole: dict[str, bytes], done: str) -> None:
    """Says which files of a folder do not say what they said; in JSON a blank more or less says nothing."""
    names = found.keys() | whole.keys()
    if differing := sorted(name for name in names if _said(name, found.get(name)) != _said(name, whole.get(name))):
        raise lost(f"{done}: the folder is another one than it was: {', '.join(differing[:5])}")


def _said(name: str, data: bytes | None) -> Any:
    return json.loads(data) if data and name.endswith(".json") else data


def damaged(out: Path, random: random.Random, others: list[Path]) -> str:
    """Damages one file of a folder, seldom two, or a folder in it."""
    done = []
    for _ in range(random.choice((1, 1, 1, 2))):
        paths = sorted(path for path in out.rglob("*") if path.is_file() and not path.is_symlink())
        path = random.choice(paths)
        if random.random() < 0.05:
            below = path.parent if path.parent != out else path
            shutil.rmtree(below) if below.is_dir() else below.unlink()
            done.append(f"{below.relative_to(out)}: gone")
            continue
        same = [other for other in [*others, *paths] if other.suffix == path.suffix and other != path]
        done.append(f"{path.relative_to(out)}: {harmed(path, random, same)}")
    return "; ".join(done)


def brought_back(again: Callable[[], Ended], out: Path, done: str) -> str:
    """Runs the command again, and does what its lines say until it ends well; says how it ended."""
    for step in range(8):
        ended = again()
        if ended.code == 0:
            return "mended" if step == 0 else "mended as advised"
        line = ended.line.removeprefix("error: ")
        named = Path(line.split(": ")[0])
        if not named.is_relative_to(out) or not any(said in line for said in SAID):
            raise FaultError(UNCLEAR, f"{done}: the line names no file of the folder, or says not what to do: {line}")
        if named.is_dir() and not named.is_symlink():
            shutil.rmtree(named)
        elif named.exists() or named.is_symlink():
            named.unlink()
        else:
            raise FaultError(UNCLEAR, f"{done}: what it says to remove is not there: {line}")
    raise FaultError(UNCLEAR, f"{done}: the advice does not end: {line}")


def cache(world: World, folder: Path, random: random.Random) -> str:
    """The unpacked labels of a run: they are as in its folder whatever lies in the cache."""
    store = open_labels(world.labels)
    whole = {name: store[name] for name in store}
    found = label_cache.label_cache(store, folder / "cache")
    for _ in range(4):
        path = random.choice(sorted(found.folder.iterdir()))
        if random.random() < 0.7:
            damage = mutated(path.read_bytes(), random)
            path.write_bytes(damage.data)
            done = f"{path.name}: {damage.done}"
        else:
            done = f"{path.name}: {harmed(path, random, sorted(found.folder.iterdir()))}"
        with telling(done) as lines:
            again = label_cache.label_cache(store, folder / "cache")
            if list(again) != list(whole):
                raise lost(f"{done}: other ids")
            for name, held in whole.items():
                ours = again[name]
                if ours.crop_box != held.crop_box or not (
                    (ours.word_ids == held.word_ids).all() and (ours.scores == held.scores).all()
                ):
                    raise lost(f"{done}: {name} has other labels")
        if lines:
            return REFUSED
    return "as it was"


KINDS = {"labels": labels, "cache": cache}
