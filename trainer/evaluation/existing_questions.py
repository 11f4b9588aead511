"""Ask an existing model questions about photos, as `questions.Asker` asks a LLaVA."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import GenerationConfig

from trainer.attach.batches import processed
from trainer.attach.folder import ExistingFolder
from trainer.attach.run_model import AttachedModel
from trainer.evaluation.answers import Question
from trainer.evaluation.questions import NEW_TOKENS, SHORT, Asker


class ChatPrompt(NamedTuple):
    """A question up to where its answer begins."""

    text: str
    """With the image token of the model's processor."""
    yes: frozenset[int]
    """First tokens of the answers `Yes` and `yes` that are not first tokens of `No` or `no`."""
    no: frozenset[int]
    """First tokens of the answers `No` and `no` that are not first tokens of `Yes` or `yes`."""


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
        yes, no = self._first("Yes", "yes"), self._first("No", "no")
        return [
            ChatPrompt(self._chat.prompt(f"{one.text}\n{SHORT}"), frozenset(yes - no), frozenset(no - yes))
            for one in questions
        ]

    def _first(self, *answers: str) -> set[int]:
        """Return the first tokens of answers where the template puts them, after its own last characters."""
        tokenizer = self._chat.processor.tokenizer
        conversation = [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]
        found = set()
        for answer in answers:
            if self._chat.in_two:
                found.add(tokenizer(answer, add_special_tokens=False)["input_ids"][0])
                continue
            conversation[1]["value"] = answer
            text, spans, _ = self._chat(conversation, 0)
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            # The answer's own letters: a template may put a space in front of them, which is trained as well.
            start = spans[0][0] + text[spans[0][0] :].index(answer)
            pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            found.add(next(token for token, (_, end) in pairs if end > start))
        return found

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
