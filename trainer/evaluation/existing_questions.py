"""Ask an existing model questions about photos, as `questions.Asker` asks a LLaVA."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import GenerationConfig

from trainer.attach.batches import processed
from trainer.attach.folder import ExistingFolder
from trainer.attach.rows import ChatText
from trainer.attach.run_model import AttachedModel
from trainer.evaluation.answers import Question
from trainer.evaluation.questions import NEW_TOKENS, SHORT, Asker
from trainer.model.prompts import PLACEHOLDER, alike

_ANSWERS = ("Yes", "yes", "No", "no")
_TWO = (slice(0, 2), slice(2, 4))


class ChatPrompt(NamedTuple):
    """A question up to where its answer begins."""

    text: str
    """With the image token of the model's processor."""
    yes: frozenset[int]
    """First tokens of the answers `Yes` and `yes` that are not first tokens of `No` or `no`."""
    no: frozenset[int]
    """First tokens of the answers `No` and `no` that are not first tokens of `Yes` or `yes`."""


def _prompt(text: str, yes: list[int], no: list[int]) -> ChatPrompt:
    return ChatPrompt(text, frozenset(yes) - frozenset(no), frozenset(no) - frozenset(yes))


class ExistingAsker(Asker):
    """Ask an existing model questions about photos.

    The model's own processor and chat template write the questions.

    Args:
        model: a model in evaluation mode.
        folder: the model's.
        picture: returns the photo of an image id.
        batch_size: number of questions in one forward pass.
    """

    def __init__(
        self,
        model: AttachedModel,
        folder: ExistingFolder,
        picture: Callable[[str], Image.Image],
        *,
        batch_size: int = 8,
    ) -> None:
        self._vlm: Any = model.vlm
        self._device = model.device
        self._chat, self._picture, self._batch_size = folder.chat, picture, batch_size

    def prompts(self, questions: Sequence[Question]) -> Any:  # noqa: ANN401 - of its own kind
        """Write each question up to its answer, and find the first tokens of both answers there."""
        return [self._in_two(one.text) if self._chat.in_two else self._parted(one.text) for one in questions]

    def _in_two(self, question: str) -> ChatPrompt:
        """Write a question of a model that takes the answer apart from it."""
        text, _, _ = self._written_out(question, _ANSWERS[0])
        tokenizer = self._chat.processor.tokenizer
        first = [int(tokenizer(answer, add_special_tokens=False)["input_ids"][0]) for answer in _ANSWERS]
        return _prompt(text, first[:2], first[2:])

    def _parted(self, question: str) -> ChatPrompt:
        """Write a question with each answer as in training, and split it where the answers part.

        The template's own prompt may end otherwise, as those of thinking models do, which open a thought. The tokens
        that the rows with `Yes` and `No` share are the prompt. The lower-case answers count too, if they part from the
        prompt at the same place.
        """
        tokenizer = self._chat.processor.tokenizer
        texts = [self._written_out(question, answer).text for answer in _ANSWERS]
        rows = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        shared = alike(rows[0], rows[2])
        same = [row[:shared] == rows[0][:shared] for row in rows]
        yes, no = ([row[shared] for row, agrees in zip(rows[two], same[two], strict=True) if agrees] for two in _TWO)
        text = texts[0][: alike(texts[0], texts[2])]
        cuts = range(len(text), len(text.rstrip()) - 1, -1)  # a token may fuse white space with the answer
        tokens = (tokenizer(text[:cut], add_special_tokens=False)["input_ids"] for cut in cuts)
        fitting = (cut for cut, ids in zip(cuts, tokens, strict=True) if list(ids) == rows[0][:shared])
        return _prompt(text[: next(fitting, len(text))], yes, no)

    def _written_out(self, question: str, answer: str) -> ChatText:
        turns = [{"from": "human", "value": f"{PLACEHOLDER}\n{question}\n{SHORT}"}, {"from": "gpt", "value": answer}]
        return self._chat(turns, 1)

    def _say(self, prompts: Sequence[Any], images: Sequence[str], *, yes_no: bool) -> list[str]:
        """Answer prompts, each with a photo."""
        shown = [[self._picture(image)] for image in images]
        given, _ = processed(self._chat, [one.text for one in prompts], shown, left=True)
        given = {
            key: value.to(self._device) if isinstance(value, torch.Tensor) else value for key, value in given.items()
        }
        if not yes_no:
            return self._written(given)
        logits = self._vlm(**given, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        sums = [
            [row[sorted(tokens)].logsumexp(-1) for tokens in (one.yes, one.no)]
            for row, one in zip(logits, prompts, strict=True)
        ]
        return ["yes" if yes > no else "no" for yes, no in sums]

    def _written(self, given: dict[str, Any]) -> list[str]:
        ends, tokenizer = self._vlm.generation_config, self._chat.processor.tokenizer
        settings = GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            bos_token_id=ends.bos_token_id,
            eos_token_id=ends.eos_token_id if ends.eos_token_id is not None else tokenizer.eos_token_id,
            pad_token_id=ends.pad_token_id if ends.pad_token_id is not None else tokenizer.pad_token_id,
        )
        ids = self._vlm.generate(**given, generation_config=settings)[:, given["input_ids"].shape[1] :]
        return [str(text).strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
