"""Ask an existing model questions about photos, as `questions.Asker` asks a LLaVA."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from PIL import Image
from transformers import GenerationConfig

from trainer.attach.batches import processed
from trainer.attach.folder import ExistingFolder
from trainer.attach.run_model import AttachedModel
from trainer.evaluation.answers import Question
from trainer.evaluation.questions import (
    ANSWERS,
    NEW_TOKENS,
    Asker,
    Beginning,
    beginnings,
    free_prompt,
    question_turns,
    shared_length,
    yes_or_no,
)
from trainer.evaluation.token_replacement import CHECKED


class ChatPrompt(NamedTuple):
    """A question up to where its answer begins."""

    text: str
    """With the image token of the model's processor."""
    yes: frozenset[Beginning] = frozenset()
    """See `Prompt`."""
    no: frozenset[Beginning] = frozenset()


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
        """Write each question up to its answer, and find how both answers begin there."""
        return [self._in_two(one) if self._chat.in_two else self._parted(one) for one in questions]

    def _in_two(self, question: Question) -> ChatPrompt:
        """Write a question of a model that takes the answer apart from it."""
        text, _, _ = self._chat(question_turns(question, ANSWERS[0]), 1)
        tokenizer = self._chat.processor.tokenizer
        rows = [list(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in ANSWERS]
        return ChatPrompt(text, *beginnings(rows))

    def _parted(self, question: Question) -> ChatPrompt:
        """Write a question with each answer as in training, and split it where the answers part.

        The template's own prompt may end otherwise, as those of thinking models do, which open a thought. The tokens
        that all rows share are the prompt. For a question that is answered freely see `free_prompt`.
        """
        texts = [self._chat(question_turns(question, answer), 1).text for answer in ANSWERS]
        if not question.yes_no:
            return ChatPrompt(free_prompt(self._chat.prompt(question_turns(question, ANSWERS[0]), 1), texts))
        tokenizer = self._chat.processor.tokenizer
        rows = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        start, text = shared_length(rows), texts[0][: shared_length(texts)]
        cuts = range(len(text), len(text.rstrip()) - 1, -1)  # a token may fuse white space with the answer
        tokens = (tokenizer(text[:cut], add_special_tokens=False)["input_ids"] for cut in cuts)
        fitting = (cut for cut, ids in zip(cuts, tokens, strict=True) if list(ids) == rows[0][:start])
        return ChatPrompt(text[: next(fitting, len(text))], *beginnings([row[start:] for row in rows]))

    def _say(self, prompts: Sequence[Any], images: Sequence[str], *, yes_no: bool) -> list[str]:
        """Answer prompts, each with a photo."""
        shown = [[self._picture(image)] for image in images]
        given, _ = processed(self._chat, [one.text for one in prompts], shown, left=True)
        given = send_to_device(given, self._device)
        return yes_or_no(prompts, lambda after: self._next(given, after)) if yes_no else self._written(given)

    def _next(self, given: dict[str, Any], after: Beginning) -> torch.Tensor:
        """Return the logits of the token that follows the prompts and some tokens, (B, V)."""
        if after:
            ids = given["input_ids"]
            longer = {
                key: torch.cat([value, value[:, -1:].expand(-1, len(after))], 1)
                for key, value in given.items()  # the attention mask and token_type_ids go on as they end
                if isinstance(value, torch.Tensor) and value.shape == ids.shape
            }
            given = given | longer | {"input_ids": torch.cat([ids, ids.new_tensor([after]).expand(len(ids), -1)], 1)}
        logits: torch.Tensor = self._vlm(**given, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        return logits

    def _written(self, given: dict[str, Any]) -> list[str]:
        ends, tokenizer = self._vlm.generation_config, self._chat.processor.tokenizer
        settings = GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            bos_token_id=ends.bos_token_id,
            eos_token_id=ends.eos_token_id if ends.eos_token_id is not None else tokenizer.eos_token_id,
            pad_token_id=ends.pad_token_id if ends.pad_token_id is not None else tokenizer.pad_token_id,
        )
        written = self._vlm.generate(**given, generation_config=settings, logits_processor=CHECKED)
        ids = written[:, given["input_ids"].shape[1] :]
        return [str(text).strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
