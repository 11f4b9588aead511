"""Kinds of inputs of `label`: folders, tars, tables, datasets, lists; and images' bytes alone."""

import csv
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline.inputs.pixels import BadImageError, decode_image
from tests.fuzz.mutations import Mutated, harmed, mutated, mutated_text
from tests.fuzz.verdicts import UNCLEAR, Ended, FaultError, command, judged, lost, telling
from tests.fuzz.worlds import Case, World
from tests.support.photo_forms import Photos, write_dataset, write_folder, write_parquet, write_tar
from tests.support.programs import Program
from tests.support.world import main as label_colours

ROUNDS = 20
"""Images that one trial of `image` damages: each takes a millisecond."""


def image(world: World, folder: Path, random: random.Random) -> str:
    """The bytes of images: what decodes of a damaged PNG is what it was, for its chunks have checksums."""
    ends = {"decoded": 0, "bad": 0}
    for _ in range(ROUNDS):
        name, data = random.choice(list(world.photos.items()))
        found = mutated(data, random)
        with telling(f"{name}: {found.done}"):
            try:
                decoded = decode_image(found.data).image
            except BadImageError as bad:
                ends["bad"] += 1
                if "\n" in bad.message or not bad.message:
                    raise FaultError(UNCLEAR, f"{name}: {found.done}: {bad.message!r}") from None
                continue
        ends["decoded"] += 1
        whole = decode_image(data).image
        is_png = name.endswith(".png") and found.data.startswith(data[:8])
        if is_png and not np.array_equal(np.asarray(decoded), np.asarray(whole)):
            raise lost(f"{name}: {found.done}: decodes to other pixels")
    return max(ends, key=lambda end: ends[end])


def images(world: World, folder: Path, random: random.Random) -> str:
    """A folder of images: some are damaged, or something else lies at their place."""
    inputs = write_folder(folder / "in", world.photos)
    chosen = random.sample(sorted(world.photos), random.choice((1, 1, 2, 3)))
    done = [f"{name}: {harmed(inputs / name, random, [world.folder / '000.png'])}" for name in chosen]
    if random.random() < 0.3:
        name = random.choice([b"\xff.png", b"new\nline.png", b"._000.png", b".DS_Store", b"x" * 200 + b".jpg"])
        (inputs / os.fsdecode(name)).write_bytes(b"no image")
    if random.random() < 0.2:
        (inputs / random.choice(("loop", "loop.png"))).symlink_to(inputs)
    rest = {name: data for name, data in world.photos.items() if name not in chosen}
    return world.judge(Case(inputs, "; ".join(done), rest), folder / "out")


def tar(world: World, folder: Path, random: random.Random) -> str:
    """One tar, in any format that Python writes."""
    path = folder / "x.tar"
    _write_tar(path, world.photos, random)
    found = mutated(path.read_bytes(), random)
    rest = _left(path, found)
    path.write_bytes(found.data)
    return world.judge(Case(path, found.done, rest, frozenset({"x.tar"})), folder / "out")


def tars(world: World, folder: Path, random: random.Random) -> str:
    """Several tars, as a folder or by a pattern, of which one is damaged or something else."""
    parts = [dict(list(world.photos.items())[number::3]) for number in range(3)]
    paths = [folder / "t" / f"{number:03d}.tar" for number in range(3)]
    for path, photos in zip(paths, parts, strict=True):
        _write_tar(path, photos, random)
    number = random.randrange(3)
    rest = {name: data for n, photos in enumerate(parts) if n != number for name, data in photos.items()}
    if random.random() < 0.7:
        found = mutated(paths[number].read_bytes(), random)
        rest |= _left(paths[number], found)
        paths[number].write_bytes(found.data)
        done = found.done
    else:
        done = harmed(paths[number], random, [paths[(number + 1) % 3]])
        if done.startswith("replaced by 0"):
            rest = {}  # each id has its tar in front now
    asked = random.choice([str(folder / "t"), f"{folder}/t/*.tar", f"{folder}/t/{{000..002}}.tar"])
    containers = frozenset({paths[number].name})
    return world.judge(Case(asked, f"{paths[number].name}: {done}", rest, containers), folder / "out")


def _write_tar(path: Path, photos: Photos, random: random.Random) -> None:
    if random.random() < 0.3:
        pairs = [pair for name, data in photos.items() for pair in ((name, data), (f"{name}.json", b"{}"))]
        write_tar(path, dict(pairs))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    form = random.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in photos.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if form == tarfile.PAX_FORMAT and random.random() < 0.5:
                member.pax_headers = {"mtime": "1700000000.25", "comment": "ü"}
            tar.addfile(member, io.BytesIO(data))


def _left(path: Path, found: Mutated) -> Photos:
    """The images of a tar whose headers and bytes are all there."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member)) for member in tar if not member.name.endswith(".json")]
        return {
            member.name: file.read()
            for member, file in members
            if file and found.leaves(member.offset, member.offset_data + member.size)
        }


def table(world: World, folder: Path, random: random.Random) -> str:
    """A Parquet file of images, or two."""
    path = folder / "t" / "a.parquet"
    plain, group = random.random() < 0.5, random.choice((3, 5, 100))
    photos = list(world.photos.items())
    parts = [dict(photos[:7]), dict(photos[7:])] if random.random() < 0.4 else [world.photos]
    rest: Photos = {}
    for part, name in zip(parts, ("a.parquet", "b.parquet"), strict=False):
        write_parquet(folder / "t" / name, part, plain=plain, group=group)
        rest |= part if name != path.name else {}
    data = path.read_bytes()
    found = (_flipped_footer if random.random() < 0.3 else mutated)(data, random)
    names_hold = found.leaves_in_place(_footer(data), len(data))  # those of columns: without its own, ids are numbers
    rest |= _rows_left(path, parts[0], group, found)
    path.write_bytes(found.data)
    asked = folder / "t" if len(parts) > 1 else path
    case = Case(asked, found.done, rest, frozenset({path.name}), named_by_checksum=names_hold)
    return world.judge(case, folder / "out")


def _footer(data: bytes) -> int:
    """Where what a Parquet file says of itself begins, behind its pages."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _flipped_footer(data: bytes, random: random.Random) -> Mutated:
    """A bit of the footer: nothing has a checksum there."""
    place = random.randrange(_footer(data), len(data))
    changed = data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
    return Mutated(changed, f"a bit of the footer flipped at {place}", ((place, place + 1),))


def _rows_left(path: Path, photos: Photos, group: int, found: Mutated) -> Photos:
    """The images of row groups whose pages are where they were; a footer may be damaged, but loses nobody in silence.

    If their ids are damaged they have others: those of the column are in other bytes.
    """
    metadata = pq.ParquetFile(path).metadata
    left: Photos = {}
    for number in range(metadata.num_row_groups):
        columns = [metadata.row_group(number).column(index) for index in range(metadata.num_columns)]
        starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
        if all(found.leaves_in_place(start, end) for start, end in zip(starts, ends, strict=True)):
            left |= dict(list(photos.items())[number * group : (number + 1) * group])
    return left


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


def listed(world: World, folder: Path, random: random.Random) -> str:
    """A list of paths: CSV, TSV, text, LLaVA's JSON and JSONL."""
    form = random.choice(list(_LISTS))
    path = folder / f"list.{form}"
    path.write_bytes(_LISTS[form](list(world.photos)))
    lines = path.read_bytes().splitlines(keepends=True)
    found = mutated_text(path.read_bytes(), random)
    rest, at = {}, 0
    for number, line in enumerate(lines):
        inside = [name for name in world.photos if f"{name}".encode() in line]
        # A line is whole with the end of the one before it, and a JSON record with its comma.
        if number and inside and found.leaves(at - 1, at + len(line)):
            rest |= {name: world.photos[name] for name in inside}
        at += len(line)
    path.write_bytes(found.data)
    options = ("--image-root", world.folder)
    return world.judge(Case(path, f"{form}: {found.done}", rest, options=options), folder / "out")


def _csv(paths: list[str], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    rows.writerows([["n", "path", "caption"], *([n, name, f'a, "{n}" b'] for n, name in enumerate(paths))])
    return text.getvalue().encode()


def _records(paths: list[str]) -> list[str]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": 'A "red" pätch.'}]
    return [json.dumps({"id": f"s{n}", "image": name, "conversations": turns}) for n, name in enumerate(paths)]


_LISTS: dict[str, Callable[[list[str]], bytes]] = {
    "csv": _csv,
    "tsv": lambda paths: _csv(paths, "\t"),
    "txt": lambda paths: "".join(f"{name}\n" for name in ["", *paths]).encode(),
    "json": lambda paths: ("[\n" + ",\n".join(_records(paths)) + "\n]\n").encode(),
    "jsonl": lambda paths: "".join(f"{line}\n" for line in ["", *_records(paths)]).encode(),
}


def parquet_list(world: World, folder: Path, random: random.Random) -> str:
    """A Parquet file of paths: nothing in it has a checksum, so rows are only counted."""
    path = folder / "list.parquet"
    rows = pa.table({"path": list(world.photos), "n": range(len(world.photos))})
    pq.write_table(rows, path, row_group_size=random.choice((4, 100)))
    found = mutated(path.read_bytes(), random)
    path.write_bytes(found.data)
    return world.judge(Case(path, found.done, {}, options=("--image-root", world.folder)), folder / "out")


def program(world: World, folder: Path, random: random.Random) -> str:
    """Any of the others, by the command line as a program of its own."""

    def run(*arguments: object) -> Ended:
        begun = Program(label_colours, arguments, folder / "said")
        return judged(Ended(begun.wait(), begun.stdout, begun.stderr), list(map(str, arguments)))

    world.run = run
    try:
        return random.choice((images, tar, tars, table, listed))(world, folder, random)
    finally:
        world.run = command


KINDS = {
    "image": image, "images": images, "tar": tar, "tars": tars, "table": table, "list": listed,
    "parquet list": parquet_list, "dataset": dataset, "program": program,
}  # fmt: skip
