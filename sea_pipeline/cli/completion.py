"""Complete folders, recipes and specs in a shell, with the names that commands give by default."""

from contextlib import suppress
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.own_trainer import take_own_trainer


def labels() -> list[str]:
    """List the folders of labels."""
    return _folders("runs/labels/*/dataset.json", "runs/*/labels/dataset.json")


def outputs() -> list[str]:
    """List the folders that are written shard by shard, which are labels and targets."""
    return [*labels(), *_folders("runs/targets/*/dataset.json")]


def runs() -> list[str]:
    """List the folders of training runs and of their stages."""
    return _folders("runs/*/*/run.json", "runs/*/*/*/run.json")


def labels_and_runs() -> list[str]:
    """List the folders that a report can show."""
    return [*labels(), *runs()]


def models() -> list[str]:
    """List the LLaVA folders of runs, and those that runs begin with."""
    return _folders("runs/*/*/model/config.json", "runs/*/*/*/model/config.json", "runs/models/*/config.json")


def runs_and_models() -> list[str]:
    """List the folders that can be exported."""
    return [*runs(), *models()]


def recipes() -> list[str]:
    """List the recipes by name, and those of a checkout."""
    return [*recipe_names(), *sorted(map(str, Path().glob("jobs/*.yaml")))]


def recipe_names() -> list[str]:
    """List the recipes of the project and the rows of the papers' tables."""
    with suppress(UserError):
        take_own_trainer()
        from trainer.recipes import names

        return names.recipe_names()
    return []


def wordlists() -> list[str]:
    """List the packaged word list and the prefix of a list mined from captions."""
    return ["2of12", "mine:"]


def encoders() -> list[str]:
    """List the beginnings of encoder specs."""
    return ["packaged", "packaged@224", "open_clip:", "s2:packaged", "s2:open_clip:"]


def devices() -> list[str]:
    """List the devices by kind."""
    return ["auto", "cpu", "cuda"]


def _folders(*patterns: str) -> list[str]:
    return sorted(str(file.parent) for pattern in patterns for file in Path().glob(pattern))
