"""Old names of what a user imports work, and say what they are called now."""

import importlib
import subprocess
import sys

import pytest

from trainer import losses

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
