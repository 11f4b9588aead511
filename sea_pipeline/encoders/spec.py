"""Parse `--encoder`, which says the model, its patch vectors and the scales.

    packaged                                   at 448 pixels; packaged@224: at another multiple of 32
    open_clip:ARCH/PRETRAINED[#PATH[SIGN]]     PRETRAINED: a tag that open_clip lists for ARCH, or a file of weights
    open_clip:FOLDER[#PATH[SIGN]]              a folder with open_clip_config.json and weights
    open_clip:hf-hub:ORG/NAME[#PATH[SIGN]]
    s2:… or s2@1,2:…                           any of them at several scales; s2: is s2@1,2,3:

PATH chooses one of the model's kinds of patch vectors, and SIGN (+ or -) overrides the path's own sign.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Literal, Self

from sea_pipeline.core.errors import UserError

Precision = Literal["float32", "bfloat16", "float16"]
Template = Literal["bare", "photo", "ensemble"]

SIGNS = {"final": -1, "value": 1, "vv": 1, "pool": 1}
"""The paths, and the sign of the similarity of a patch and a word unless the spec says otherwise (SEA Eq. 6)."""
S2_SCALES = (1, 2, 3)

_S2 = re.compile(r"s2(?:@(\d+(?:,\d+)*))?:(.*)", re.DOTALL)
_PACKAGED = re.compile(r"packaged(?:@(.*))?", re.DOTALL)
PACKAGED_SIDE = 448
"""The side in pixels of the packaged encoder's input, unless the spec says otherwise."""
PACKAGED_STRIDE = 32
_PATH = re.compile(rf"(.*)#({'|'.join(SIGNS)})([+-]?)", re.DOTALL)
_OTHER_PATH = re.compile(r".+(#[^#/]*)", re.DOTALL)
_OPEN_CLIP = "open_clip:"
_LONGEST_NAME = 60


@dataclass(frozen=True)
class EncoderOptions:
    """What decides embeddings in addition to the spec."""

    precision: Precision = "float32"
    """Of the image tower's weights and activations; words are embedded in float32 always."""
    template: Template = "bare"
    """What a word is put into: nothing, "a photo of a {}.", or the mean of 80 such sentences."""


@dataclass(frozen=True)
class EncoderSpec:
    """A parsed spec; its `str` is its one canonical spelling."""

    model: str | None
    """The text after `open_clip:`; None for the packaged encoder."""
    path: str | None = None
    sign: int | None = None
    scales: tuple[int, ...] | None = None
    """The scales of S2; None without S2."""
    side: int = PACKAGED_SIDE
    """The side of the packaged encoder's images, in pixels."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a spec, without checking that such a model exists and has such a path.

        Raises:
            UserError: it is no spec.
        """
        scales, rest = split_s2(text)
        if scales and (scales[0] < 1 or list(scales) != sorted(set(scales))):
            raise UserError(f"--encoder {text}: expected ascending scales from 1; found {','.join(map(str, scales))}")
        if (side := packaged_side(rest)) is not None:
            return cls(None, scales=scales, side=side)
        model, path, sign = rest.removeprefix(_OPEN_CLIP), None, None
        if found := _PATH.fullmatch(model):
            model, path, sign = found[1], found[2], {"+": 1, "-": -1}.get(found[3])
        elif (found := _OTHER_PATH.fullmatch(model)) and not Path(model).exists():
            paths = ", ".join(f"#{name}" for name in SIGNS)
            raise UserError(
                f"--encoder {text}: expected one of {paths} after the model, then + or the hyphen - or neither; found "
                f"{found[1]}"
            )
        if re.fullmatch(r"packaged[#+\-\u2212].*", rest):
            raise UserError(f"--encoder {text}: packaged has one path and no sign; leave {rest[8:]} out")
        if not rest.startswith(_OPEN_CLIP) or not model:
            raise UserError(
                f"--encoder {text}: expected packaged, packaged@SIDE, open_clip:ARCH/PRETRAINED, open_clip:FOLDER or "
                "open_clip:hf-hub:ORG/NAME, each with or without s2: before it"
            )
        return cls(model, path, sign, scales)

    def __str__(self) -> str:
        if self.model is None:
            return f"{self.scales_text()}{self._packaged()}"
        sign = {1: "+", -1: "-", None: ""}[self.sign]
        return f"{self.scales_text()}{_OPEN_CLIP}{self.model}" + (f"#{self.path}{sign}" if self.path else "")

    def at(self, path: str) -> Self:
        """Return the same spec with another path, which has its own sign."""
        return replace(self, path=path, sign=None)

    def short_name(self) -> str:
        """Return a short name for folders, which need not be unique."""
        parts = PurePath((self.model or self._packaged()).removeprefix("hf-hub:")).parts
        last = re.sub(r"\.(pt|pth|bin|safetensors)$", "", parts[-1])
        name = last if len(parts) == 1 or parts[0] in ("/", "~", "..") else f"{parts[0]}-{last}"
        name += f"-{self.path}" if self.path else ""
        name += {1: "+", -1: "-", None: ""}[self.sign]
        return (self.scales_text().replace(":", "-") + name)[-_LONGEST_NAME:]

    def _packaged(self) -> str:
        return "packaged" if self.side == PACKAGED_SIDE else f"packaged@{self.side}"

    def scales_text(self) -> str:
        """Return the part in front of the encoder that S2 wraps."""
        if self.scales is None:
            return ""
        return "s2:" if self.scales == S2_SCALES else f"s2@{','.join(map(str, self.scales))}:"


def packaged_side(text: str) -> int | None:
    """Return the side in pixels of `packaged` or `packaged@SIDE`, or None for another spec.

    Raises:
        UserError: the network cannot see images of this size.
    """
    if not (found := _PACKAGED.fullmatch(text)):
        return None
    given = str(PACKAGED_SIDE) if found[1] is None else found[1]
    side = int(given) if re.fullmatch("[0-9]{1,4}", given) else 0
    if not 0 < side <= 4096 or side % PACKAGED_STRIDE:
        raise UserError(
            f"{text}: expected a side of {PACKAGED_STRIDE} to 4,096 pixels, a multiple of {PACKAGED_STRIDE}, such as "
            f"packaged@224; found {found[1]}"
        )
    return side


def split_s2(text: str) -> tuple[tuple[int, ...] | None, str]:
    """Split a spec into the scales that `s2:` or `s2@1,2:` in front of it asks for, or None, and the rest."""
    if not (found := _S2.fullmatch(text)):
        return None, text
    return tuple(map(int, found[1].split(","))) if found[1] else S2_SCALES, found[2]
