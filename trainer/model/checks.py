"""Checks the settings of `init` without torch, which takes seconds to load."""

from sea_pipeline.encoders.spec import packaged_side, split_s2
from sea_pipeline.storage.publish import check_new_folder
from trainer.model.settings import InitSettings


def check_init(settings: InitSettings) -> None:
    """Check the settings of `init`.

    Raises:
        UserError: the folder holds something, or the packaged tower does not see images of that size.
    """
    check_new_folder(settings.out)
    packaged_side(split_s2(settings.vision)[1])
