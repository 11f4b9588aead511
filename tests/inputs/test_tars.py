"""Tars are read to the end of their files, and what is lost in them is said."""

import errno
import os
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pytest

from sea_pipeline import open_labels
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.sources.tar_members import Members
from sea_pipeline.storage.leftovers import LEFTOVERS
from tests.support.contents import read_all
from tests.support.photo_forms import Link, copy_to, photos_in, tar_bytes, write_folder
from tests.support.refused import refused
from tests.support.world import Label, draw_folder

BLOCK = bytes(512)
MARKERS = "blocks of zeros inside a tar, which was read on behind them"
A = {f"a{number}.png": bytes([number + 1]) * (600 + number) for number in range(3)}
B = {f"b{number}.png": bytes([number + 65]) * (600 + number) for number in range(3)}
"""Members of 600 and a few bytes: each takes a header of 512 and 1,024 of data."""


def open_end(members: dict[str, bytes]) -> bytes:
    """A tar without its end marker."""
    return tar_bytes(members)[: 1536 * len(members)]


def header(name: str, kind: bytes, size: bytes) -> bytes:
    """A header with a right checksum, whatever it says."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def base256(size: int) -> bytes:
    """As GNU tar writes sizes of 8 GB and more, and as damage writes negative ones."""
    return (b"\x80" if size >= 0 else b"\xff") + (size % 256**11).to_bytes(11, "big")


def pax(*records: bytes) -> bytes:
    text = b"".join(records)
    return header("pax", b"x", octal(len(text))) + text.ljust(-(-len(text) // 512) * 512, b"\0")


def listed(folder: Path, data: bytes) -> tuple[dict[str, bytes | str], Listing]:
    (folder / "x.tar").write_bytes(data)
    listing = list_samples(str(folder / "x.tar"))
    return read_all(listing), listing


WHOLE = {
    "two, one behind the other": tar_bytes(A) + tar_bytes(B),
    "a lone block of zeros": open_end(A) + BLOCK + open_end(B) + 2 * BLOCK,
    "a lone block of zeros, and one at the end": open_end(A) + BLOCK + open_end(B) + BLOCK,
    "zeros at the beginning": 7 * BLOCK + tar_bytes(A) + tar_bytes(B),
    "megabytes of zeros between": tar_bytes(A) + bytes(3 << 20) + tar_bytes(B),
    "no end marker in front of the second": open_end(A) + tar_bytes(B),
    "of two formats": tar_bytes(A, tarfile.USTAR_FORMAT) + tar_bytes(B, tarfile.GNU_FORMAT),
    "megabytes of zeros behind": tar_bytes(A | B) + bytes(3 << 20),
    "of a length that is no block's": tar_bytes(A | B) + bytes(100),
    "a size in base 256": open_end(A) + header("b0.png", b"0", base256(600)) + open_end(B)[512:] + 2 * BLOCK,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_tar_ends_where_its_file_ends(tmp_path: Path, name: str) -> None:
    found, listing = listed(tmp_path, WHOLE[name])
    assert found == A | B
    inside = "between" in name or "beginning" in name or "two" in name or "lone" in name
    expected = 2 if "beginning" in name else 1 if inside else 0  # behind the hole, and behind the first tar's end
    assert listing.notes == ({MARKERS: expected} if expected else {})


SAID = {
    "garbage behind the end": (tar_bytes(A) + b"\x77" * 5000, {**A}, "behind its first 3 images: no header at"),
    "megabytes of garbage, then a tar": (
        tar_bytes(A) + b"\x77" * (3 << 19) + tar_bytes(B), A | B, "no header at byte 10,240",
    ),
    "a hole over a header and the data before it": (
        open_end(A)[: 1536 + 700] + bytes(1400) + open_end(A)[1536 + 2100 :] + tar_bytes(B),
        {"a0.png": A["a0.png"], "a1.png": A["a1.png"][:188] + bytes(413), **B}, "behind its first 2 images: no header",
    ),
    "cut in a header": (open_end(A) + open_end(B)[:100], {**A}, "no header at byte 4,608"),
    "cut between two members": (open_end(A), {**A}, "it has no end marker, so it may have been cut off"),
    "cut in data": (
        open_end(A) + open_end(B)[:600],
        A | {"b0.png": "x.tar ends after 88 of the image's 600 bytes; it has been cut off"},
        "behind its first 4 images: the member at byte 4,608 ends behind the end of the file",
    ),
    "cut in data, and a tar behind it": (
        open_end(A) + header("cut.png", b"0", octal(2000)) + b"cut" * 7 + tar_bytes(B),
        A | B | {"cut.png": b"cut" * 7 + tar_bytes(B)[:1979]}, "behind its first 4 images: no header at byte 7,168",
    ),
    "cut in a header, and a tar behind it": (
        open_end(A) + open_end(B)[:300] + tar_bytes(B), A | B, "behind its first 3 images: no header at byte 4,608",
    ),
    "cut in the end marker, and a tar behind it": (
        open_end(A) + bytes(700) + tar_bytes(B), A | B, "behind its first 3 images: no header at byte 5,120",
    ),
    "a negative size": (
        open_end(A) + header("n.png", b"0", base256(-512)) + tar_bytes(B), A | B, "it says a size of -512 bytes",
    ),
    "a size that leads back": (
        open_end(A) + header("n.png", b"0", base256(-1536)) + tar_bytes(B), A | B, "it says a size of -1,536 bytes",
    ),
    "a size of 2**80": (
        open_end(A) + header("n.png", b"0", base256(2**80)) + tar_bytes(B),
        A | B | {"n.png": f"expected at most 536,870,912 bytes, found {2**80:,}"}, "ends behind the end of the file",
    ),
    "a long name of 2**62 bytes": (
        open_end(A) + header("n", b"L", base256(2**62)) + tar_bytes(B), A | B, "the header at byte 4,608 cannot be",
    ),
    "a pax header of 2**80 bytes": (
        open_end(A) + header("n", b"x", base256(2**80)) + tar_bytes(B), A | B, "the header at byte 4,608 cannot be",
    ),
    "a negative size in a pax header": (
        open_end(A) + pax(b"11 size=-5\n") + tar_bytes(B), A | B, "it says a size of -5 bytes",
    ),
    "a pax header that is none": (open_end(A) + pax(b"0 x=y\n") + tar_bytes(B), A | B, "invalid header"),
    "a sparse map that is none": (
        open_end(A) + pax(b"24 GNU.sparse.map=1,x,y\n") + tar_bytes(B), A | B, "cannot be read: invalid literal",
    ),
    "a pax header of too many digits": (
        open_end(A) + pax(b"9" * 5000 + b" x=y\n") + tar_bytes(B), A | B,
        "cannot be read: ",  # Python 3.12 and older: of the digits; newer ones: of the header
    ),
    "a chain of long names": (
        (header("n", b"L", octal(7)) + b"a0.png\0".ljust(512, b"\0")) * 400 + open_end(A) + tar_bytes(B), A | B,
        "recursion",
    ),
    "a long name that is empty": (open_end(A) + header("n", b"L", octal(0)) + tar_bytes(B), A | B, "it says no name"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_damage_is_said_and_costs_nothing_behind_it(tmp_path: Path, name: str) -> None:
    data, expected, said = SAID[name]
    found, _ = listed(tmp_path, data)
    problem = str(found.pop("x.tar"))
    assert said in problem
    assert "\n" not in problem
    assert found == expected | {image: found[image] for image in ("n",) if image in found}


@pytest.mark.parametrize("gone", [1024, 1000, 1100])
@pytest.mark.parametrize("end", [0, 1024])
def test_a_member_whose_header_lies_in_another_ones_bytes_is_found(tmp_path: Path, gone: int, end: int) -> None:
    """Behind what the damaged member's header says lie zeros, or nothing: without it, a tar that ends well."""
    last = tar_bytes({"b0.png": b"\5" * 9})[:1024]
    data = header("z.png", b"0", octal(4000)) + b"z" * (4000 - gone) + bytes(96) + last
    found, _ = listed(tmp_path, open_end(A) + data.ljust(4608 + end, b"\0"))
    assert f"bytes are missing before the header at byte {4608 + 512 + 4096 - gone:,}" in str(found.pop("x.tar"))
    assert {name: found[name] for name in [*A, "b0.png"]} == A | {"b0.png": b"\5" * 9}


def test_a_tar_in_a_tar_is_no_damage(tmp_path: Path) -> None:
    found, _ = listed(tmp_path, tar_bytes({**A, "inner.tar": tar_bytes(B)}))
    assert found == A


@pytest.mark.slow
def test_a_tar_is_read_once_and_garbage_fast(tmp_path: Path) -> None:
    """Not block by block: 64 MB of zeros and of garbage are looked through in well under ten seconds."""
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes(A) + bytes(64 << 20) + b"\x77" * (64 << 20) + tar_bytes(B))
    with path.open("rb") as file:
        assert [member.name for member in Members(file)] == [*A, *B]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected a .tar with images, not compressed; it is empty"),
        (b"no tar at all" * 100, "no header at byte 0"),
        (b"\x1f\x8b" + os.urandom(5000), "it is compressed"),
        (b"\xfd7zXZ\0" + os.urandom(5000), "it is compressed"),
        (bytes(10240), "expected images, found none"),
    ],
)
def test_a_file_that_is_no_tar_is_refused_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    with refused(match=said):
        listed(tmp_path, data)


def test_an_empty_file_that_may_not_be_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    (tmp_path / "x.tar").touch()
    with refused("x.tar: cannot be read: Permission denied"):
        list_samples(str(tmp_path / "x.tar"))


def test_of_two_members_of_one_name_the_later_counts_and_the_other_is_counted(tmp_path: Path) -> None:
    found, listing = listed(tmp_path, tar_bytes(A) + tar_bytes({"./a1.png": b"new", "b0.png": b"B"}))
    assert found == A | {"a1.png": b"new", "b0.png": b"B"}
    assert listing.notes == {"members that a later one of the same tar replaces": 1, MARKERS: 1}


LINKED: dict[str, bytes | Link] = {
    "d/a.png": b"A",
    "soft.png": (tarfile.SYMTYPE, "d/a.png"),
    "d/up.png": (tarfile.SYMTYPE, "../d/./a.png"),
    "early.png": (tarfile.SYMTYPE, "late.png"),
    "twice.png": (tarfile.SYMTYPE, "soft.png"),
    "hard.png": (tarfile.LNKTYPE, "d/a.png"),
    "hard of soft.png": (tarfile.LNKTYPE, "soft.png"),
    "link": (tarfile.SYMTYPE, "d"),
    "through.png": (tarfile.SYMTYPE, "link/a.png"),
    "of another kind.png": (tarfile.SYMTYPE, "data.bin"),
    "data.bin": b"D",
    "text": (tarfile.SYMTYPE, "d/a.png"),
    "late.png": b"L",
    "circle.png": (tarfile.SYMTYPE, "other.png"),
    "other.png": (tarfile.SYMTYPE, "circle.png"),
    "astray.png": (tarfile.SYMTYPE, "nowhere.png"),
    "d/back": (tarfile.SYMTYPE, ".."),
}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_links_in_a_tar_are_what_they_are_in_the_folder_that_it_is_unpacked_into(tmp_path: Path, kind: int) -> None:
    """The slow twin: `tarfile` unpacks, and the folder is listed."""
    found, listing = listed(tmp_path, tar_bytes(LINKED, kind))
    with tarfile.open(tmp_path / "x.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data" if kind == tarfile.GNU_FORMAT else "tar")
    folder = list_samples(str(tmp_path / "unpacked"))
    expected = read_all(folder)
    assert found.keys() == expected.keys()
    assert {"link/a.png", "link/up.png", "hard of soft.png", "circle.png"} < found.keys()
    good = {name: data for name, data in expected.items() if isinstance(data, bytes)}
    assert {name: data for name, data in found.items() if isinstance(data, bytes)} == good
    assert found["astray.png"] == "is a link to 'nowhere.png', which is not in the tar"
    assert listing.notes == folder.notes


@pytest.mark.parametrize("target", ["../a0.png", "/a0.png", "d/../../a0.png", "nowhere/a0.png", "\udcff.png"])
def test_a_link_out_of_a_tar_costs_itself(tmp_path: Path, target: str) -> None:
    found, _ = listed(tmp_path, tar_bytes({**A, "s.png": (tarfile.SYMTYPE, target)}, tarfile.GNU_FORMAT))
    assert "which is not in the tar" in str(found.pop("s.png"))
    assert found == A


def test_a_link_to_a_member_of_the_next_tar_and_a_member_that_replaces_a_link(tmp_path: Path) -> None:
    first = tar_bytes({"s.png": (tarfile.SYMTYPE, "b0.png"), "h.png": (tarfile.LNKTYPE, "b0.png"), "a0.png": b"A"})
    second = tar_bytes({"b0.png": b"B", "a0.png": (tarfile.SYMTYPE, "b0.png")})
    found, _ = listed(tmp_path, first + second)
    assert found["s.png"] == found["a0.png"] == found["b0.png"] == b"B"
    assert "which is not before it in the tar" in str(found["h.png"])  # when it would be unpacked, it is not there yet


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (header("s.png", b"S", octal(512)) + bytes(512), "its holes are left out"),
        (pax(b"29 GNU.sparse.map=0,10,90,10\n") + header("s.png", b"0", octal(20)) + BLOCK, "its holes are left out"),
        (header("s.png", b"6", octal(0)), "found a member of the type b'6'"),
        (header("s.png", b"3", octal(0)), "found a member of the type b'3'"),
        (header("s.png", b"M", octal(512)) + bytes(512), "found a member of the type b'M'"),
        (header("s.png", b"2", octal(0)), "found a member of the type b'2'"),
    ],
)
def test_a_member_that_is_no_plain_file_costs_itself(tmp_path: Path, member: bytes, said: str) -> None:
    found, _ = listed(tmp_path, open_end(A) + member + tar_bytes(B))
    assert said in str(found.pop("s.png"))
    assert found == A | B


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_that_are_long_or_no_utf8(tmp_path: Path, kind: int) -> None:
    long = "d/" * 200 + "ü ::#.png"
    found, _ = listed(tmp_path, tar_bytes({long: b"L", os.fsdecode(b"\xe9.png"): b"E", "a.png": b"A"}, kind))
    assert found == {long: b"L", "\\xe9.png": "the name of the member is not UTF-8; rename it", "a.png": b"A"}


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (b"ustar  \0" + bytes(80) + b"14726254163\0" * 2, "s.png"),  # a time, as `tar -g` writes
        (b"ustar  \0" + bytes(80) + b"in/deep\0", "in/deep/s.png"),  # as Go wrote before 1.8
        (b"ustar\0" + b"00" + bytes(80) + b"12345670123\0", "12345670123/s.png"),
    ],
)
def test_times_in_a_header_are_no_part_of_a_name(tmp_path: Path, field: bytes, name: str) -> None:
    member = bytearray(header("s.png", b"0", octal(1)))
    member[257 : 257 + len(field)] = field
    member[148:156] = b" " * 8
    member[148:156] = b"%06o\0 " % sum(member)
    folder = header("d", b"D", octal(0))
    assert listed(tmp_path, folder + member + b"S".ljust(512, b"\0") + bytes(1024))[0] == {name: b"S"}


@pytest.mark.parametrize("images", ["/one.tar", "/tars", "/tars/{1..0}.tar", "memory://tars"])
def test_every_way_to_give_tars_reads_them_to_their_ends(tmp_path: Path, images: str, empty_memory: None) -> None:
    tars = {"0.tar": tar_bytes(A) + tar_bytes(B), "1.tar": tar_bytes({"c.png": b"C"}) + b"\x77" * 600}
    write_folder(tmp_path / "tars", tars)
    (tmp_path / "one.tar").write_bytes(b"".join(tars.values()))
    copy_to("memory://tars", tmp_path / "tars")
    listing = list_samples(images if "://" in images else f"{tmp_path}{images}")
    found = read_all(listing)
    assert "no header at byte" in str(found.pop("one.tar" if "one" in images else "1.tar"))
    assert found == A | B | {"c.png": b"C"}
    assert listing.notes[MARKERS] == (2 if "one" in images else 1)


def test_a_damaged_tar_of_several_costs_its_images_and_not_the_run(label: Label, tmp_path: Path) -> None:
    photos = photos_in(draw_folder(tmp_path / "photos", 5))
    tars = {"0.tar": tar_bytes(photos), "1.tar": open_end(B)[:600], "2.tar": b"no tar at all" * 100}
    write_folder(tmp_path / "tars", tars)
    label(images=str(tmp_path / "tars"), max_bad=0.9)
    store = open_labels(tmp_path / "labels")
    assert {row["image_id"]: row["stage"] for row in store.quarantine()} == {
        "1.tar": "list", "2.tar": "list", "b0.png": "read"
    }  # fmt: skip
    assert store.ids == list(photos)


def test_what_systems_put_into_tars_is_left_out(tmp_path: Path) -> None:
    left: dict[str, bytes | Link] = {"._a0.png": b"x", "__MACOSX/a.png": b"x", "d/.ipynb_checkpoints/c.png": b"x"}
    odd = {".hidden.png": b"H", "empty.png": b"", "../../up.png": b"up"}
    found, listing = listed(
        tmp_path, tar_bytes({**left, **A, **odd, "notes.txt": b"", "b.svg": b"", "c.psd": (tarfile.SYMTYPE, "b.svg")})
    )
    assert found == A | odd
    unread = {f".{suffix} pictures, which are not read": 1 for suffix in ("svg", "psd")}
    assert listing.notes == {LEFTOVERS: 3, "files without an image's suffix": 1} | unread


def test_two_tars_that_give_two_images_one_name_are_refused(tmp_path: Path) -> None:
    """With the tar's name in front, a folder in one is as the folder that another lies in."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x.tar").write_bytes(tar_bytes({"y/a.png": b"1", "same.png": b"2"}))
    (tmp_path / "x" / "y.tar").write_bytes(tar_bytes({"a.png": b"3", "same.png": b"4"}))
    with refused("found 'x/y/a.png' for", "; rename one of the tars", match="a name of its own for every image"):
        list_samples(str(tmp_path))
    (tmp_path / "x.tar").rename(tmp_path / "z.tar")
    assert len(list_samples(str(tmp_path)).samples) == 4
