"""The hub's HTTP API on loopback, for huggingface_hub's own client: what moto is for S3.

Datasets and models with commits, branches and tags; files over git LFS or inline; tokens, private repositories, pages
of listings, ranges and redirects as the hub has them. Xet storage is not stood in: clients are told to use LFS.
`Hub.asked` holds every request, `Hub.unknown` those that are none of the hub's that it knows.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from tests.hub.repositories import RefusalError, Repository, Stored
from tests.support.loopback import Handler, Loopback

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens: `owner`'s, who may write; `guest`'s, who may read what is public."""
_PAGE = 25
"""Entries of a page of a listing."""
_LFS = (".parquet", ".safetensors", ".png", ".arrow", ".bin")


Fault = Callable[[str, str, int], int | None]
"""Method, path and how many requests there were -> the status that is answered instead; 0: the connection is cut."""


class Hub(Loopback):
    """The server; what it holds is there for tests to look at and to change."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """By sha256, what is over LFS."""
        self.received: set[tuple[str, str]] = set()
        """By repository, which of them were sent to it."""
        self.lock = threading.RLock()
        self.asked: list[tuple[str, str, str]] = []
        """Method, path, `Range`."""
        self.unknown: list[tuple[str, str]] = []
        self.fault: Fault = lambda method, path, number: None
        self.asks_to_wait: dict[str, str] = {}
        """Headers of the faults."""

    def tree(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision."""
        repository = self.repositories[name]
        return {path: file.data for path, file in repository.commits[repository.find(revision) or ""].items()}

    def put(self, name: str, files: dict[str, bytes | None]) -> None:
        """Commits files as somebody else might: None deletes one."""
        repository = self.repositories.setdefault(name, Repository(private=False))
        tree = dict(repository.commits.get(repository.refs.get("main", ""), {}))
        tree |= {path: Stored(data, path.endswith(_LFS)) for path, data in files.items() if data is not None}
        repository.commit({path: file for path, file in tree.items() if files.get(path, b"") is not None}, "by hand")


class _Handler(Handler):
    server: Hub

    def do_GET(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        path, self.query = unquote(split.path, errors="strict"), parse_qs(split.query)
        with self.server.lock:
            self.server.asked.append((self.command, path, self.headers.get("Range") or ""))
            fault = self.server.fault(self.command, path, len(self.server.asked))
        if fault == 0:
            self.close_connection = True
            self.connection.close()
            return
        try:
            if fault:
                raise RefusalError(fault, said="a fault that the test wants")
            for pattern, method in _ROUTES:
                if found := re.fullmatch(pattern, f"{self.command.replace('HEAD', 'GET')} {split.path}"):
                    with self.server.lock:
                        method(self, body, *(unquote(part) if part else "" for part in found.groups()))
                    return
            if path != "/api/agent-harnesses":  # the client's own curiosity
                self.server.unknown.append((self.command, path))
            raise RefusalError(404, said="no such page")
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.said}
            headers |= self.server.asks_to_wait if fault else {}
            self.answer(refusal.status, json.dumps({"error": refusal.said}).encode(), **headers)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    # Who asks, and for what

    def _user(self) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        users = {WRITER: "owner", READER: "guest", "": ""}
        if token not in users:
            raise RefusalError(401, said="Invalid username or password.")
        return users[token]

    def _repository(self, name: str, *, writing: bool = False) -> Repository:
        user, found = self._user(), self.server.repositories.get(name)
        if found is None or (found.private and user != name.partition("/")[0]):
            raise RefusalError(404 if user else 401, "RepoNotFound", "Repository not found")
        if writing and user != name.partition("/")[0]:
            raise RefusalError(403, said="You don't have the rights to write to it: the token has the role read")
        return found

    def _commit_of(self, repository: Repository, revision: str) -> str:
        if (oid := repository.find(revision)) is None:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    # The API

    def who(self, body: bytes) -> None:
        if not (user := self._user()):
            raise RefusalError(401, said="Invalid username or password.")
        self._json({"type": "user", "name": user, "auth": {"accessToken": {"role": "write"}}})

    def create(self, body: bytes) -> None:
        asked, user = json.loads(body), self._user()
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        kind = asked.get("type") or "model"
        assert kind in ("dataset", "model")
        if not user:
            raise RefusalError(401, said="Invalid username or password.")
        if owner != user or user == "guest":
            raise RefusalError(403, said=f"You don't have the rights to create a {kind} under the namespace {owner}")
        answer = {"url": self._page(kind, name), "name": name, "id": name}
        if name in self.server.repositories:
            self._json(answer | {"error": f"You already created this {kind} repo"}, 409)
            return
        new = self.server.repositories[name] = Repository(asked.get("private") or asked.get("visibility") == "private")
        new.commit({".gitattributes": Stored(b"*.parquet filter=lfs\n", is_lfs=False)}, "initial commit")
        self._json(answer)

    def check_card(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        errors = [] if found else [{"message": "empty metadata"}]
        for config in (yaml.safe_load(found[1]) if found else {}).get("configs", []):
            if not {"config_name", "data_files"} <= config.keys():
                errors.append({"message": f"a config without its name or its files: {config}"})
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def about(self, body: bytes, name: str, revision: str) -> None:
        repository = self._repository(name)
        oid = self._commit_of(repository, revision or "main")
        files = [{"rfilename": path} for path in repository.commits[oid]]
        self._json(
            {"_id": "0" * 24, "id": name, "private": repository.private, "sha": oid, "siblings": files, "tags": []}
        )

    def listing(self, body: bytes, name: str, revision: str, folder: str) -> None:
        repository = self._repository(name)
        tree, prefix = repository.commits[self._commit_of(repository, revision)], f"{folder}/" if folder else ""
        if folder and not any(path.startswith(prefix) for path in tree):
            raise RefusalError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        entries: dict[str, dict[str, Any]] = {}
        for path in sorted(tree):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                above = prefix + "/".join(parts[:depth])
                entries.setdefault(above, {"type": "directory", "path": above, "size": 0, "oid": "0" * 40})
            entries[path] = tree[path].info(path)
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            entries = {path: entry for path, entry in entries.items() if "/" not in path[len(prefix) :]}
        if self.query.get("expand", ["false"])[0].lower() in ("true", "1"):
            for entry in entries.values():
                entry["lastCommit"] = {"id": "0" * 40, "title": "", "date": "2026-01-01T00:00:00.000Z"}
        first = int(self.query.get("cursor", ["0"])[0])
        page, headers = list(entries.values())[first : first + _PAGE], {}
        if first + _PAGE < len(entries):
            kept = "&".join(f"{key}={value[0]}" for key, value in self.query.items() if key != "cursor")
            address = f"{self.server.url}{urlsplit(self.path).path}?{kept}&cursor={first + _PAGE}"
            headers["Link"] = f'<{address}>; rel="next"'
        self._json(page, **headers)

    def paths(self, body: bytes, name: str, revision: str) -> None:
        repository = self._repository(name)
        tree = repository.commits[self._commit_of(repository, revision)]
        is_json = "json" in (self.headers.get("Content-Type") or "")
        asked = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
        found = [tree[path].info(path) for path in asked if path in tree]
        for path in asked:
            if any(other.startswith(f"{path}/") for other in tree):
                found.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        self._json(found)

    # Writing

    def modes(self, body: bytes, name: str, revision: str) -> None:
        repository = self._repository(name, writing=True)
        tree = repository.commits[self._commit_of(repository, revision)]
        files = []
        for file in json.loads(body)["files"]:
            there = tree.get(file["path"])
            mode = "lfs" if file["path"].endswith(_LFS) or file["size"] > 10_000_000 else "regular"
            oid = None if there is None else there.sha256 if there.is_lfs else there.blob
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        self._repository(name, writing=True)
        objects = []
        for one in json.loads(body)["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if (name, one["oid"]) not in self.server.received:
                address = f"{self.server.url}/lfs/{name}/{one['oid']}"
                answer["actions"] = {"upload": {"href": address, "header": {}}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def receive(self, body: bytes, name: str, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusalError(422, said="the bytes are not those of the name")
        self.server.objects[oid] = body
        self.server.received.add((name, oid))
        self._json({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self._repository(name, writing=True)
        head = self._commit_of(repository, revision)
        lines = [json.loads(line) for line in body.splitlines()]
        tree, title = dict(repository.commits[head]), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", head) != head:
                    raise RefusalError(412, said="A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                tree[value["path"]] = Stored(base64.b64decode(value["content"]), is_lfs=False)
            elif line["key"] == "lfsFile":
                if (name, value["oid"]) not in self.server.received:
                    raise RefusalError(400, said=f"the LFS object of {value['path']} is missing")
                tree[value["path"]] = Stored(self.server.objects[value["oid"]], is_lfs=True)
            elif line["key"] == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    raise RefusalError(400, said=f"{value['path']} is not there")
            else:
                raise RefusalError(400, said=line["key"])
        oid = repository.commit(tree, title, revision)
        kind = "dataset" if self.path.startswith("/api/datasets/") else "model"
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self._page(kind, name)}/commit/{oid}"})

    def _page(self, kind: str, name: str) -> str:
        return f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"

    # Reading files

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        oid = self._commit_of(repository, revision)
        if (file := repository.commits[oid].get(path)) is None:
            raise RefusalError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.blob}"'}
        if not file.is_lfs:
            self._file(file.data, **headers)
            return
        self.server.objects[file.sha256] = file.data
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        # By another name of this machine: the client takes redirects on the hub itself for moved repositories.
        elsewhere = self.server.url.replace("127.0.0.1", "localhost")
        self.answer(302, b"", Location=f"{elsewhere}/cdn/{file.sha256}", **headers, **linked)

    def cdn(self, body: bytes, sha256: str) -> None:
        self._file(self.server.objects[sha256], ETag=f'"{sha256}"')

    def _file(self, data: bytes, **headers: str) -> None:
        status, total = 200, len(data)
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            if int(first) >= total:
                raise RefusalError(416)
            end = min(total - 1, int(last) if last else total - 1)
            data, status = data[int(first) : end + 1], 206
            headers["Content-Range"] = f"bytes {first}-{end}/{total}"
        self.answer(status, data, **{"Accept-Ranges": "bytes"}, **headers)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), **{"Content-Type": "application/json"}, **headers)


_NAME = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("GET /api/whoami-v2", _Handler.who),
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.check_card),
    (rf"GET /api/(?:datasets|models)/{_NAME}(?:/revision/([^/]+))?", _Handler.about),
    (rf"GET /api/(?:datasets|models)/{_NAME}/tree/([^/]+)(?:/(.+))?", _Handler.listing),
    (rf"POST /api/(?:datasets|models)/{_NAME}/paths-info/([^/]+)", _Handler.paths),
    (rf"POST /api/(?:datasets|models)/{_NAME}/preupload/([^/]+)", _Handler.modes),
    (rf"POST /(?:datasets/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (rf"PUT /lfs/{_NAME}/([0-9a-f]+)", _Handler.receive),
    (rf"POST /api/(?:datasets|models)/{_NAME}/commit/([^/]+)", _Handler.commit),
    (rf"GET /(?:datasets/)?{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"GET /cdn/([0-9a-f]+)", _Handler.cdn),
]


@contextmanager
def served(patch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """A hub on loopback, which the environment and huggingface_hub's client mean as long as it runs.

    What the client keeps lies below `home`.
    """
    import huggingface_hub
    from huggingface_hub import HfFileSystem, constants

    with Hub() as hub:
        settings = {
            "HF_HOME": str(home),
            "HF_TOKEN": WRITER,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        for name, value in settings.items():
            patch.setenv(name, value)
        # Read from the environment once, when it was imported.
        template = "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        HfFileSystem.clear_instance_cache()
        try:
            yield hub
        finally:
            huggingface_hub.close_session()
            HfFileSystem.clear_instance_cache()


def as_program() -> None:
    """The command line as a program that is forked from one which has imported the client already."""
    import os

    import huggingface_hub
    from huggingface_hub import constants

    from sea_pipeline import cli

    constants.ENDPOINT = os.environ["HF_ENDPOINT"]
    constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
    huggingface_hub.hf_api.api.endpoint = constants.ENDPOINT
    cli.main()
