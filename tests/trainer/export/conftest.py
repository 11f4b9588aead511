"""A finished run to export."""

import pytest

from tests.support.tiny_runs import World, colours, tiny_recipe
from trainer.training.run import TrainRun, train_stages


@pytest.fixture(scope="session")
def run(_made: World, tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    """Two stages, of which the second one's run is given; to be read only."""
    recipe = tiny_recipe(
        _made, name="mine", data={"evaluate": str(_made.held_out)}, training_arguments={"max_steps": 2}
    )
    align = recipe.model_copy(update={"name": "align"})
    with pytest.MonkeyPatch.context() as patch, colours():
        patch.setenv("SEA_PIPELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return train_stages({"align": align, "language": recipe}, tmp_path_factory.mktemp("run"))["language"]
