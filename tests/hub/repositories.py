"""What the stand-in of the hub holds: datasets as commits, each with a whole tree of files."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class RefusalError(Exception):
    """An answer that is none of the 200s."""

    def __init__(self, status: int, code: str = "", said: str = "") -> None:
        super().__init__(said)
        self.status, self.code, self.said = status, code, said or code


class Stored(NamedTuple):
    """A file of a commit."""

    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob(self) -> str:
        """What git calls it; of LFS the pointer's."""
        data = self.data
        if self.is_lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def info(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(self.data), "oid": self.blob}
        if self.is_lfs:
            found["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": 134}
        return found


Tree = dict[str, Stored]


@dataclass
class Repository:
    """A dataset: its commits, each with a whole tree, and what names them."""

    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, tree: Tree, title: str, ref: str = "main") -> str:
        held = [len(self.commits), title, sorted((path, file.sha256) for path, file in tree.items())]
        oid = hashlib.sha1(json.dumps(held).encode()).hexdigest()
        self.commits[oid] = tree
        self.refs[ref] = oid
        self.titles.append(title)
        return oid

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)
