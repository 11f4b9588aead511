"""Find what a processor writes in place of an image token, by the image's size, and keep it in the cache."""

import json
import re
import time
from collections.abc import Iterable
from typing import NamedTuple

import transformers
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter, progress_if_slow
from sea_pipeline.storage.cache import read_checked, with_checksum
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.paths import cache_folder
from sea_pipeline.storage.publish import make_folder, publish_bytes
from trainer.attach.batches import written_out
from trainer.attach.rows import Chat
from trainer.attach.tiles import CUTS, Size

_VERSION = 1
"""Increase it with each change of what a file in the cache holds."""
_KEEP_EVERY = 30.0
"""Seconds after which what was found is written to the cache, in case the run is stopped."""

Key = tuple[int, int, bool]
"""An image's size, or the rows and columns of its tiles; and whether its sample has several images."""


class Expansion(NamedTuple):
    """What a processor writes in place of an image token."""

    text: str
    short: str
    """The same with each run of visual tokens as one of them."""
    spared: int
    """The number of tokens that `short` has less."""


class Expansions:
    """What a processor writes in place of the image tokens of images, by their sizes.

    A processor runs once on a blank image of each size, or of each way to cut tiles, which alone decides the text of a
    family in `CUTS`. Its own `_get_num_multimodal_tokens` is not asked: it knows neither Gemma 3's crops nor the fewer
    tokens that OneVision gives to each of several images.

    Args:
        chat: the model's.

    Attributes:
        path: the file in the cache.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._visual = str(chat.processor.tokenizer.convert_ids_to_tokens(chat.image_token_id))
        self._runs = re.compile(f"(?:{re.escape(self._visual)})+")
        self._cut = CUTS.get(type(chat.processor).__name__)
        self.path = cache_folder() / "expansions" / f"{self._fingerprint()}.json"
        self._texts: dict[str, Expansion] = {}
        self._found: dict[Key, Expansion | UserError] = self._kept()

    def find(self, images: Iterable[tuple[Size, bool]], reporter: Reporter = SILENT) -> None:
        """Find what is not known yet of images by their sizes and whether their samples have several.

        Raises:
            UserError: the cache cannot be written.
        """
        keys = {self._key(size, several): size for size, several in images}
        missing = {key: size for key, size in keys.items() if key not in self._found}
        kept = time.monotonic()
        what = "the model's processor on a blank image of each size, kept for later runs"
        with progress_if_slow(reporter, what, len(missing)) as advance:
            for key, size in missing.items():
                self._found[key] = self._made(size, several=key[2])
                advance(1)
                if time.monotonic() - kept > _KEEP_EVERY:
                    self._keep()
                    kept = time.monotonic()
        if missing:
            self._keep()

    def of(self, size: Size, *, several: bool) -> Expansion:
        """Return what is written for an image of a sample with several images or with it alone.

        Raises:
            UserError: the processor refuses images of its size.
        """
        key = self._key(size, several)
        if key not in self._found:
            self._found[key] = self._made(size, several=several)
        found = self._found[key]
        if isinstance(found, UserError):
            raise UserError(str(found))
        return found

    def _key(self, size: Size, several: bool) -> Key:
        return (*(size if self._cut is None else self._cut(self._chat.processor, size)), several)

    def _made(self, size: Size, *, several: bool) -> Expansion | UserError:
        try:
            return self._expansion(written_out(self._chat, [Image.new("RGB", size) for _ in range(1 + several)]))
        except UserError as error:
            return error

    def _expansion(self, text: str) -> Expansion:
        """Return the one object of a text, because many sizes share theirs."""
        if text not in self._texts:
            short = self._runs.sub(lambda _: self._visual, text)
            self._texts[text] = Expansion(text, short, text.count(self._visual) - short.count(self._visual))
        return self._texts[text]

    # The cache

    def _fingerprint(self) -> str:
        processor = self._chat.processor
        settings = json.loads(processor.to_json_string())
        written = [self._visual, self._chat.mark, sorted(map(str, processor.tokenizer.special_tokens_map.items()))]
        made = {"version": _VERSION, "transformers": transformers.__version__, "cut": self._cut is not None}
        return fingerprint_of({**made, "processor": settings, "written": written})

    def _kept(self) -> dict[Key, Expansion | UserError]:
        """Read what earlier runs found; a file that is damaged counts as none."""
        if (kept := read_checked(self.path)) is None:
            return {}
        texts = [self._expansion(self._written(*one)) for one in kept["texts"]]
        return {(first, second, several): texts[number] for first, second, several, number in kept["sizes"]}

    def _keep(self) -> None:
        """Write what is known, with what another run may have found meanwhile.

        What the processor refuses is asked again, because the reason may pass.
        """
        make_folder(self.path.parent)
        self._found = self._kept() | self._found
        numbers: dict[str, int] = {}
        sizes = [
            [*key, numbers.setdefault(found.text, len(numbers))]
            for key, found in self._found.items()
            if not isinstance(found, UserError)
        ]
        kept = {"texts": [self._in_runs(text) for text in numbers], "sizes": sizes}
        publish_bytes(self.path, with_checksum(kept), self.path.parent)

    def _in_runs(self, text: str) -> tuple[list[str], list[int]]:
        """Split a text at its runs of visual tokens, and count the tokens of each run."""
        return self._runs.split(text), [len(run) // len(self._visual) for run in self._runs.findall(text)]

    def _written(self, parts: list[str], runs: list[int]) -> str:
        """Put a text of `_in_runs` together again."""
        return "".join(part + self._visual * run for part, run in zip(parts, [*runs, 0], strict=True))
