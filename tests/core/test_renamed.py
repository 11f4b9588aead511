"""Old names of what a user imports or calls work, and say what they are called now; and problems in one line."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline.core.errors import MOST, one_line
from sea_pipeline.core.progress import SILENT, ProgressOnly, Reporter
from sea_pipeline.core.renamed import Callbacks, taking_callbacks
from sea_pipeline.labels.run import LabelSettings, label_images
from tests.support.heard import Heard
from tests.support.world import ColourEncoder, draw_folder
from trainer import losses
from trainer.training.reporter import TrainCallbacks, reporter_of_told

RENAMED = {
    "sea_pipeline.shards.ShardWriter": "sea_pipeline.labels.format.ShardWriter",
    "sea_pipeline.teacher.open_targets": "trainer.targets.store.open_targets",
    "sea_pipeline.execution.cluster_settings.Crew": "sea_pipeline.execution.cluster_settings.WorkerSettings",
    "sea_pipeline.execution.cluster_settings.Existing": "sea_pipeline.execution.cluster_settings.ExistingCluster",
    "trainer.recipe.Recipe": "trainer.recipes.recipe.Recipe",
    "trainer.training.reporter.Told": "trainer.training.reporter.TrainCallbacks",
    "trainer.words.llm_embeddings": "trainer.losses.embeddings.llm_embeddings",
    "trainer.words.ordinary_length": "trainer.losses.embeddings.ordinary_length",
}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_warns_and_is_what_it_was(old: str) -> None:
    (module, _, name), (new_module, _, new_name) = old.rpartition("."), RENAMED[old].rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"{old} is {RENAMED[old]} now"):
        found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(new_module), new_name)


@pytest.mark.slow
def test_the_warning_is_of_the_line_that_imports() -> None:
    program = "\nfrom sea_pipeline.shards import KIND\nprint(KIND)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "labels\n"
    assert done.stderr.startswith("<string>:2: DeprecationWarning: ")


def test_what_never_was_is_missing() -> None:
    import sea_pipeline.shards
    import trainer.words

    for module in (sea_pipeline.shards, trainer.words):
        with pytest.raises(AttributeError, match="no_such"):
            _ = module.no_such


def test_the_losses_have_one_face() -> None:
    from trainer.losses import equations

    for name in ("sea", "das", "sds", "word_table"):
        assert getattr(losses, name) is getattr(equations, name)


OLD = "reporter= takes the place of {}; the old name goes with version 0.2"


def test_label_hears_as_before(encoder: ColourEncoder, words: Path, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 3)
    settings = LabelSettings.of(images=str(photos), wordlist=str(words), top_n=3, out=tmp_path / "out", device="cpu")
    folders: list[Any] = []
    bars: list[tuple[Any, ...]] = []
    said: list[str] = []

    def bar(*given: Any) -> Any:
        bars.append(given)
        return SILENT.progress("", 0)

    with pytest.warns(DeprecationWarning, match=OLD.format("begun= and say= and progress=")) as warned:
        label_images(settings, begun=folders.append, say=said.append, progress=bar)  # type: ignore[call-arg]
    assert warned[0].filename == __file__
    assert [ledger.root for ledger in folders] == [tmp_path / "out"]
    assert [line for line in said if not line.startswith("embedding ")] == []  # where they go is told to `begun`
    assert ("labelling", 3, 0) in bars
    heard = Heard()
    label_images(settings, heard)
    assert heard.lines == [f"the labels go to {tmp_path / 'out'}"]


def test_train_hears_as_before() -> None:
    @taking_callbacks("told", made_by=reporter_of_told)
    def work(*, reporter: Reporter = SILENT) -> Reporter:
        reporter.message("a line")
        return reporter

    rows: list[Any] = []
    lines: list[str] = []
    with pytest.warns(DeprecationWarning, match=OLD.format("told=")):
        told = work(told=TrainCallbacks(say=lines.append, data=rows.append))  # type: ignore[call-arg]
    assert isinstance(told, TrainCallbacks)
    told.data({"rows": 1})
    told.trainable({})
    told.warning("nobody hears it")
    assert (lines, rows) == (["a line"], [{"rows": 1}])
    assert work() is SILENT


def test_only_a_warning_that_is_shown_is_worth_looking_for() -> None:
    assert Heard().shows_warnings
    assert Callbacks(warn=print).shows_warnings
    assert not SILENT.shows_warnings
    assert not ProgressOnly(Heard()).shows_warnings
    assert not Callbacks(say=print, warn=None).shows_warnings
    Callbacks(say=None).message("nobody hears it")


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ValueError("while parsing\n  a mapping\n\tline 3"), "while parsing a mapping line 3"),
        (RuntimeError(), "RuntimeError"),
        (OSError("  \n"), "OSError"),
        (ValueError("x" * MOST), "x" * MOST),
        (ValueError("x" * (MOST + 1)), "x" * (MOST - 1) + "…"),
    ],
)
def test_one_line(problem: Exception, line: str) -> None:
    assert one_line(problem) == line
