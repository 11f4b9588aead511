"""Check the settings of `teacher` without torch, whose import takes seconds."""

from sea_pipeline.core.device_names import check_device_name
from sea_pipeline.core.errors import UserError
from trainer.data.files import check_conversations
from trainer.model.llava_folder import check_llava_folder
from trainer.model.weight_files import weight_files
from trainer.teacher.settings import TeachSettings


def check_teacher(settings: TeachSettings) -> None:
    """Check the settings of `teacher`.

    Raises:
        UserError: a file, a folder or a device does not exist, or options contradict each other.
    """
    if settings.extend and (settings.limit or settings.out is None):
        raise UserError(
            "--extend: expected --out, the folder to extend, and no --limit: every image that is new is added"
        )
    if settings.crew.in_process:
        check_device_name(settings.device)
    check_llava_folder(settings.model)
    check_conversations(settings.data, settings.image_root)
    weight_files(settings.model)
