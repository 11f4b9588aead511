"""What a shell offers where a folder, a recipe or a spec is asked for: names that lie where the commands put them."""

from contextlib import suppress
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.own_trainer import take_own_trainer


def labels() -> list[str]:
    """Folders of labels."""
    return _folders("runs/labels/*/dataset.json", "runs/*/labels/dataset.json")


def outputs() -> list[str]:
    """Folders that are written shard by shard: labels and targets."""
    return [*labels(), *_folders("runs/targets/*/dataset.json")]


def runs() -> list[str]:
    """Folders of training runs, or of their stages."""
    return _folders("runs/*/*/run.json", "runs/*/*/*/run.json")


def labels_and_runs() -> list[str]:
    """What a report shows."""
    return [*labels(), *runs()]


def models() -> list[str]:
    """LLaVA folders: those of runs, and those that runs begin with."""
    return _folders("runs/*/*/model/config.json", "runs/*/*/*/model/config.json", "runs/models/*/config.json")


def runs_and_models() -> list[str]:
    """What can be exported."""
    return [*runs(), *models()]


def recipes() -> list[str]:
    """Recipes by name, and those of a checkout."""
    return [*recipe_names(), *sorted(map(str, Path().glob("jobs/*.yaml")))]


def recipe_names() -> list[str]:
    """Recipes of the project, and rows of the papers' tables."""
    with suppress(UserError):
        take_own_trainer()
        from trainer.recipes import names

        return names.recipe_names()
    return []


def wordlists() -> list[str]:
    """The packaged list, and how one mined from captions begins."""
    return ["2of12", "mine:"]


def encoders() -> list[str]:
    """How specs begin."""
    return ["packaged", "packaged@224", "open_clip:", "s2:packaged", "s2:open_clip:"]


def devices() -> list[str]:
    """Devices by kind."""
    return ["auto", "cpu", "cuda"]


def _folders(*patterns: str) -> list[str]:
    return sorted(str(file.parent) for pattern in patterns for file in Path().glob(pattern))
