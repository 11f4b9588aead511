"""What `--encoder` says: which model, which of its patch vectors, at which scales.

    packaged                                   at 448 pixels; packaged@224: at another multiple of 32
    open_clip:ARCH/PRETRAINED[#PATH[SIGN]]     PRETRAINED: a tag that open_clip lists for ARCH, or a file of weights
    open_clip:FOLDER[#PATH[SIGN]]              a folder with open_clip_config.json and weights
    open_clip:hf-hub:ORG/NAME[#PATH[SIGN]]
    s2:… or s2@1,2:…                           any of them at several scales; s2: is s2@1,2,3:

PATH says which of a model's patch vectors, SIGN (+ or -) overrides the path's own sign.
"""

import re
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal, Self

from sea_pipeline.core.errors import UserError

Precision = Literal["float32", "bfloat16", "float16"]
Template = Literal["bare", "photo", "ensemble"]

SIGNS = {"final": -1, "value": 1, "vv": 1, "pool": 1}
"""The paths, and with which sign a patch and a word are similar unless the spec says otherwise (SEA Eq. 6)."""
S2_SCALES = (1, 2, 3)

_S2 = re.compile(r"s2(?:@(\d+(?:,\d+)*))?:(.*)", re.DOTALL)
_PACKAGED = re.compile(r"packaged(?:@(.*))?", re.DOTALL)
PACKAGED_SIDE = 448
"""Pixels a side of what the packaged encoder sees."""
PACKAGED_STRIDE = 32
_PATH = re.compile(rf"(.*)#({'|'.join(SIGNS)})([+-]?)", re.DOTALL)
_OPEN_CLIP = "open_clip:"
_LONGEST_NAME = 60


@dataclass(frozen=True)
class EncoderOptions:
    """What decides embeddings beside the spec."""

    precision: Precision = "float32"
    """Of the image tower's weights and activations; words are embedded in float32 always."""
    template: Template = "bare"
    """What a word is put into: nothing, "a photo of a {}.", or the mean of 80 such sentences."""


@dataclass(frozen=True)
class EncoderSpec:
    """A parsed spec; `str` of it is its one canonical spelling."""

    model: str | None
    """What follows `open_clip:`; None: the packaged encoder."""
    path: str | None = None
    sign: int | None = None
    scales: tuple[int, ...] | None = None
    """None: without S2."""
    side: int = PACKAGED_SIDE
    """Of the packaged encoder's images, in pixels."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The parts of a spec. Whether such a model and such a path exist is not looked at.

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
        """The same with a path of its own sign."""
        return replace(self, path=path, sign=None)

    def short_name(self) -> str:
        """A short name for folders; not unique."""
        parts = PurePath((self.model or self._packaged()).removeprefix("hf-hub:")).parts
        last = re.sub(r"\.(pt|pth|bin|safetensors)$", "", parts[-1])
        name = last if len(parts) == 1 or parts[0] in ("/", "~", "..") else f"{parts[0]}-{last}"
        name += f"-{self.path}" if self.path else ""
        name += {1: "+", -1: "-", None: ""}[self.sign]
        return (self.scales_text().replace(":", "-") + name)[-_LONGEST_NAME:]

    def _packaged(self) -> str:
        return "packaged" if self.side == PACKAGED_SIDE else f"packaged@{self.side}"

    def scales_text(self) -> str:
        """The part before the encoder that S2 wraps."""
        if self.scales is None:
            return ""
        return "s2:" if self.scales == S2_SCALES else f"s2@{','.join(map(str, self.scales))}:"


def packaged_side(text: str) -> int | None:
    """Gives the side in pixels of `packaged` or `packaged@SIDE`, None of another spec.

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
    """The scales that `s2:` or `s2@1,2:` in front of a spec asks for, None without it, and the spec behind it."""
    if not (found := _S2.fullmatch(text)):
        return None, text
    return tuple(map(int, found[1].split(","))) if found[1] else S2_SCALES, found[2]
