"""docs/private-names.md lists what we use of other libraries that they do not promise, and it is still there."""

import re
from collections.abc import Iterable, Set
from functools import cache
from pathlib import Path
from typing import Any

import open_clip.factory
import pytest
from transformers import PreTrainedModel, Trainer

from tests.support.paths import MODULES, ROOT
from tests.support.private_names import Module, Row, library, rows, signature

PAGE = "docs/private-names.md"
TEXT = (ROOT / PAGE).read_text("utf-8")
PRIVATE, PUBLIC = rows(TEXT)


@cache
def modules() -> dict[str, Module]:
    return {name: Module(file) for name, file in MODULES.items()}


@cache
def uses() -> frozenset[tuple[str, str]]:
    """(file, name): every private name of others that we use."""
    each = modules().values()
    return frozenset((str(one.file.relative_to(ROOT)), name) for one in each for name in one.uses(modules()))


def unlisted(found: Set[tuple[str, str]], listed: Iterable[Row]) -> list[str]:
    """Uses that are no row, and rows that are no use, a line each."""
    told = {(file, row.last) for row in listed for file in row.files}
    return [f"{file}: uses {name}, which {PAGE} does not list" for file, name in sorted(found - told)] + [
        f"{PAGE}: lists {name} for {file}, which does not use it any more" for file, name in sorted(told - found)
    ]


def unused(listed: Iterable[Row]) -> list[str]:
    """The same of public names, of which nobody can say which are to be listed."""
    return [
        f"{PAGE}: lists {row.name} for {file}, which does not name it any more"
        for row in listed
        for file in row.files
        if not re.search(rf"\b{row.last}\b", (ROOT / file).read_text("utf-8"))
    ]


def moved(listed: Iterable[Row]) -> list[str]:
    """Names that the installed libraries do not have as listed, a line each."""
    found = [(row, signature(row.name)) for row in listed]
    return [
        f"{library(row.name)}: {row.name}: expected {row.signature}, found {now}; see {PAGE}, then {row.files[0]}"
        for row, now in found
        if now != row.signature
    ]


@pytest.mark.slow
def test_every_use_is_listed_and_every_row_is_used() -> None:
    assert unlisted(uses(), PRIVATE) == []
    assert unused(PUBLIC) == []
    assert len({row.name for row in [*PRIVATE, *PUBLIC]}) == TEXT.count("\n| `"), (
        "a row is there twice, or cannot be read"
    )


@pytest.mark.slow
def test_all_are_as_listed() -> None:
    assert moved([*PRIVATE, *PUBLIC]) == []


PLANTED = {
    "an override": "from transformers import Trainer\nclass T(Trainer):\n    def _save_scaler(self, output_dir): ...",
    "an override in a grandchild": "from trainer.training.resume import ResumingTrainer\n"
    "class T(ResumingTrainer):\n    def _save_scaler(self, output_dir): ...",
    "an attribute of a class": "import transformers\nclass T(transformers.PreTrainedModel):\n    _save_scaler = 1\n"
    "    _can_compile_fullgraph = True",
    "a call of a base's method": "from trainer.training.resume import ResumingTrainer\n"
    "class T(ResumingTrainer):\n    def f(self): self._save_scaler('')",
    "by super": "from transformers import Trainer as T\nclass U(T):\n    def f(self): super()._save_scaler('')",
    "an import": "from transformers.trainer import _save_scaler",
    "a private module": "from torch._save_scaler import all_reduce",
    "a private module, whole": "import torch._save_scaler as t",
    "a module's attribute": "import transformers.trainer as t\nt._save_scaler = lambda output_dir: None",
    "a public name, patched": "from transformers import Trainer\nTrainer.log = print",
    "an object's attribute": "def f(trainer): return trainer.one[0]._save_scaler",
    "by a string": "def f(trainer): return getattr(trainer, '_save_scaler', None)",
    "a parameter": "from transformers.utils.hub import cached_file\ncached_file('a', 'b', _save_scaler=False)",
}
NONE = {
    "methods of our own": "from transformers import Trainer\nclass T(Trainer):\n    def _ours(self): self._ours()",
    "of a base of ours": "from trainer.training.resume import ResumingTrainer\n"
    "class T(ResumingTrainer):\n    def f(self): return self._problems",
    "of a module of ours": "from trainer.training.resume import _ours\nimport trainer.x as x\ndef _ours(): x._ours",
    "of named tuples": "def f(row): return row._replace(name='')._asdict()",
    "of the module os": "import os\nos._exit(1)",
}


def planted(code: str, folder: Path) -> set[str]:
    """What is found in a new file."""
    (folder / "new.py").write_text(code)
    return set(Module(folder / "new.py").uses(modules()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANTED)
def test_a_new_use_is_found(kind: str, tmp_path: Path) -> None:
    found = planted(PLANTED[kind], tmp_path)
    others = {"an attribute of a class": "_can_compile_fullgraph", "a public name, patched": "log"}
    name = others.get(kind, "_save_scaler")
    assert found == {name}
    lines = unlisted({*uses(), ("trainer/new.py", name)}, PRIVATE)
    assert lines == [f"trainer/new.py: uses {name}, which docs/private-names.md does not list"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NONE)
def test_what_is_ours_is_no_use(kind: str, tmp_path: Path) -> None:
    assert planted(NONE[kind], tmp_path) == set()


@pytest.mark.slow
def test_a_row_that_nothing_uses_is_found() -> None:
    row = Row("transformers.Trainer._save_scaler", "(self, output_dir)", ["trainer/training/resume.py"])
    wanted = "docs/private-names.md: lists {} for trainer/training/resume.py, which does not {} it any more"
    assert unlisted(uses(), [*PRIVATE, row]) == [wanted.format("_save_scaler", "use")]
    assert unused([row]) == [wanted.format("transformers.Trainer._save_scaler", "name")]


def saves(self: Any, model: Any, trial: Any, *, folder: Any = None) -> None: ...


@pytest.mark.slow
def test_a_name_that_has_moved_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_save_checkpoint", saves)
    monkeypatch.delattr(open_clip.factory, "_find_checkpoint_in_dir")
    monkeypatch.delattr(PreTrainedModel, "_supports_sdpa")
    lines = moved(PRIVATE)
    assert len(lines) == 3
    assert lines[0] == (
        f"{library('transformers.Trainer')}: transformers.Trainer._save_checkpoint: expected (self, model, trial), "
        "found (self, model, trial, *, folder=None); see docs/private-names.md, then trainer/training/resume.py"
    )
    assert re.match(
        r"transformers \d\S+: transformers\.PreTrainedModel\._supports_sdpa: expected .*, found noth", lines[1]
    )
    assert re.match(r"open_clip_torch \d\S+: open_clip\.factory\._find_checkpoint_in_dir: .*, found nothing", lines[2])


@pytest.mark.parametrize(
    "name",
    [
        "transformers.Trainer.no_attribute", "transformers.no_module.Trainer", "torch.nn:no such text", "no_library.x",
        "transformers.Trainer.save_model(no_parameter)",
    ],
)  # fmt: skip
def test_what_is_not_there_is_nothing(name: str) -> None:
    assert signature(name) == "nothing"


def test_the_bound_is_the_version_that_was_checked() -> None:
    """In every extra, and in the versions that the tests run with."""
    said = re.findall(r'"transformers(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert said
    assert set(said) == {">=5.23,<5.24"}
    assert re.search(r"^transformers==5\.23\.\d+$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
