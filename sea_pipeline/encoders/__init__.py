"""Vision-language encoders: image patches and words in one space."""

from sea_pipeline.encoders.base import Encoder, Preprocess
from sea_pipeline.errors import UserError

__all__ = ["Encoder", "Preprocess", "load_encoder"]


def load_encoder(spec: str, device: str) -> Encoder:
    """The encoder that a spec names: `packaged`. Weights are loaded when they are first needed.

    Raises:
        UserError: there is no such encoder, or its packages are not installed.
    """
    if spec == "packaged":
        from sea_pipeline.encoders.packaged import PackagedEncoder

        return PackagedEncoder(device)
    raise UserError(f"--encoder {spec}: expected packaged; found an encoder that this version does not know")
