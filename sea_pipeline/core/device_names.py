"""Check how a device is named; `devices` checks that it exists."""

import re

from sea_pipeline.core.errors import UserError


def check_device_name(spec: str) -> None:
    """Refuse a string that names no device.

    Raises:
        UserError: it is neither auto, cpu, cuda nor cuda:N.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", spec):
        raise UserError(f"--device {spec}: expected auto, cpu, cuda or cuda:N")
