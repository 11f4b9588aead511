"""Vision-language encoders: image patches and words in one space.

It may import `inputs` and what is below, but not `search`.
"""

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders.base import Encoder, Preprocess
from sea_pipeline.encoders.spec import EncoderOptions, EncoderSpec

__all__ = ["Encoder", "EncoderOptions", "EncoderSpec", "Preprocess", "check_encoder", "load_encoder", "paths_of"]


def load_encoder(spec: str, device: str, options: EncoderOptions = EncoderOptions()) -> Encoder:  # noqa: B008 - frozen
    """Make the encoder that a spec names (see `spec.py`).

    Its weights are loaded when they are first needed.

    Raises:
        UserError: there is no such encoder, it does not have what the options or the path ask for, or its packages
            are not installed.
    """
    parsed = check_encoder(spec, options)
    encoder = _single(parsed, device, options)
    if parsed.scales is None:
        return encoder
    from sea_pipeline.encoders.s2 import S2Encoder

    return S2Encoder(encoder, parsed.scales)


def check_encoder(spec: str, options: EncoderOptions) -> EncoderSpec:
    """Parse a spec and check it against the options.

    It does not check that open_clip has such a model, or the model such a path.

    Raises:
        UserError: it is no spec, or the packaged encoder does not have what the options ask for.
    """
    parsed = EncoderSpec.parse(spec)
    if parsed.model is None and options != EncoderOptions():
        raise UserError(
            f"--encoder packaged: expected --precision float32 and --template bare, which is all it has; found "
            f"{options.precision} and {options.template}"
        )
    return parsed


def paths_of(spec: str, device: str) -> list[str]:
    """List the specs of all paths that the encoder of a spec has, each with its own sign.

    If the spec names a path, the list is only this spec.

    Raises:
        UserError: see `load_encoder`.
    """
    parsed = EncoderSpec.parse(spec)
    if parsed.model is None or parsed.path is not None:
        return [spec]
    from sea_pipeline.encoders.clip import ClipEncoder

    return [str(parsed.at(path)) for path in ClipEncoder(parsed, device, EncoderOptions()).paths]


def _single(spec: EncoderSpec, device: str, options: EncoderOptions) -> Encoder:
    if spec.model is None:
        from sea_pipeline.encoders.packaged import PackagedEncoder

        return PackagedEncoder(device, spec.side)
    from sea_pipeline.encoders.clip import ClipEncoder

    return ClipEncoder(spec, device, options)
