"""The command that makes labels."""

from inspect import Parameter

from sea_pipeline.cli.command import command_with
from sea_pipeline.cli.own_options import StageJson, tell


def options() -> list[Parameter]:
    """Make the options from `LabelSettings`."""
    from sea_pipeline.cli.options import options_of
    from sea_pipeline.labels.settings import LabelSettings

    return options_of(LabelSettings)


@command_with(options)
def label(*, as_json: StageJson = False, **asked: object) -> None:
    """Label every patch of every image with its n most similar words.

    It reads images and a word list, and writes a folder of labels, shard by
    shard. After a kill, run the same command again: finished shards are kept.

    Example: sea-pipeline label --images photos.json --image-root photos --wordlist 2of12
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.options import settings_of
    from sea_pipeline.labels.checks import check_label
    from sea_pipeline.labels.settings import LabelSettings

    settings = settings_of(LabelSettings, asked)
    check_label(settings)
    from sea_pipeline.labels.run import label_images  # late, to report mistakes in the settings at once

    done = label_images(settings, terminal.Terminal())
    tell(done, "labels", "labelled", as_json=as_json)
