"""The command that stores BASIC's supervision."""

from inspect import Parameter

from sea_pipeline.cli.command import command_with
from sea_pipeline.cli.own_options import StageJson, tell


def options() -> list[Parameter]:
    """Make the options from `TeachSettings`, without those that depend on a batch or on training."""
    from sea_pipeline.cli.options import options_of
    from trainer.teacher.settings import TeachSettings

    return options_of(TeachSettings, absent=("outliers", "lens"))


@command_with(options)
def teacher(*, as_json: StageJson = False, **asked: object) -> None:
    """Store BASIC's supervision (targets) for every image.

    The targets are the refined visual embeddings and the attention of the LLM's
    layers. It reads a model, conversations and images, and writes a folder of
    targets, shard by shard. `teacher: FOLDER` in a recipe reads it. After a
    kill, run the same command again: finished shards are kept.

    Example: sea-pipeline teacher --model runs/train/x/model --data photos.json --image-root photos
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.options import settings_of
    from trainer.teacher.checks import check_teacher
    from trainer.teacher.settings import TeachSettings

    settings = settings_of(TeachSettings, asked)
    check_teacher(settings)
    from trainer.teacher.run import teach_images  # late, to report mistakes in the settings at once

    done = teach_images(settings, terminal.Terminal())
    tell(done, "targets", "taught", as_json=as_json)
