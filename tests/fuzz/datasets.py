"""A kind that reads a folder of Hugging Face's `datasets`: each of its files may be damaged, the Arrow ones too."""

import random
from pathlib import Path

import pytest

from tests.fuzz.mutations import harmed, mutated, mutated_text
from tests.fuzz.worlds import Case, World
from tests.support.photo_forms import Photos, write_dataset


def dataset(world: World, folder: Path, random: random.Random) -> str:
    """A dataset as `save_to_disk` writes it, read row by row or forward."""
    names = list(world.photos)
    cells = [{"bytes": world.photos[name], "path": name} for name in names]
    saved = write_dataset(folder / "d", train={"image": cells, "image_id": names})
    path = random.choice(sorted(file for file in saved.rglob("*") if file.is_file()))
    data, is_arrow = path.read_bytes(), path.suffix == ".arrow"
    rest: Photos = dict(world.photos)
    if random.random() < 0.8:
        found = (mutated if is_arrow else mutated_text)(data, random)
        if is_arrow:
            places = {name: data.find(held) for name, held in rest.items()}
            rest = {name: held for name, held in rest.items() if found.leaves(places[name], places[name] + len(held))}
        path.write_bytes(found.data)
        done = found.done
    else:
        done = harmed(path, random, [])
        rest = {} if is_arrow else rest
    options = ("--streaming",) if random.random() < 0.3 else ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        case = Case(f"hf:{saved}:train", f"{path.name}: {done}", rest, options=options, named_by_checksum=False)
        return world.judge(case, folder / "out")


KINDS = {"dataset": dataset}
