"""Measure how many questions about photos a model answers rightly, with their own photos and with others'.

A yes/no question is answered by the probabilities of the two words, a question with people's answers by the text that
the model writes greedily. For comparison, the score that the questions alone allow is reported.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from sea_pipeline.core.progress import Advance, Reporter
from trainer.evaluation.answers import Question, mean_over_groups, normalised, question_only, vqa_accuracy
from trainer.evaluation.evaluator import evaluating
from trainer.evaluation.own_run import UNCUT
from trainer.evaluation.question_file import Questions as Questions
from trainer.evaluation.question_file import left_out
from trainer.evaluation.question_file import read_questions as read_questions
from trainer.evaluation.token_replacement import generate, stock
from trainer.measures.blind_control import others
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.load import ModelFolder
from trainer.model.prompts import PLACEHOLDER, Message, TemplateName, load_template, read_messages
from trainer.model.tokenise import Conversation, ConversationTokenizer

SHORT = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 appends to a question that asks for a short answer."""
NEW_TOKENS = 10
"""Most tokens of a short answer."""


def open_questions(path: Path, reporter: Reporter) -> list[Question]:
    """Read a file of questions, and warn of what is left out of it.

    Raises:
        UserError: see `read_questions`.
    """
    questions = read_questions(path)
    if (line := left_out(path, questions)) is not None:
        reporter.warning(line)
    return questions.asked


class Prompt(NamedTuple):
    """A question up to where its answer begins, tokenised as in training."""

    ids: torch.Tensor
    """int64 (L,), image tokens expanded."""
    yes: frozenset[int]
    """First tokens of the answers `Yes` and `yes` that are not first tokens of `No` or `no`."""
    no: frozenset[int]
    """First tokens of the answers `No` and `no` that are not first tokens of `Yes` or `yes`."""


class Asker:
    """Ask a model questions about photos.

    Args:
        model: a model in evaluation mode, with the LLM's layers.
        folder: the model's folder; its tokenizer and image processor prepare the questions.
        picture: returns the photo of an image id.
        template: how conversations are written, see `prompts.load_template`.
        batch_size: number of questions in one forward pass.

    Raises:
        UserError: the template cannot write a question with its answer.
    """

    def __init__(
        self,
        model: AlignedLlava,
        folder: ModelFolder,
        picture: Callable[[str], Image.Image],
        *,
        template: TemplateName = "own",
        batch_size: int = 8,
    ) -> None:
        processor = folder.processor
        self._model, self._processor, self._picture, self._batch_size = model, processor, picture, batch_size
        self._tokens = folder.grid[0] * folder.grid[1]
        self._render = load_template(template, processor.tokenizer, processor.image_token)
        self._encode = ConversationTokenizer(processor.tokenizer, processor.image_token, self._tokens, UNCUT)

    def __call__(self, questions: Sequence[Question], advance: Advance = lambda _: None) -> dict[str, float]:
        """Ask all questions with their own photos and with others', and score the answers.

        Args:
            questions: the questions of a file.
            advance: called with the number of questions done; each is asked twice.

        Returns:
            For each KIND of `yes_no` and `vqa`: `KIND_questions`, their number; `KIND_accuracy` and
            `KIND_accuracy_other` (with another photo), each with `_se`; `KIND_accuracy_question_only`, see
            `question_only`. `vqa_accuracy_yes` is that of always saying yes, and `vqa_accuracy_people` that of the
            people's most common answer.
        """
        found: dict[str, float] = {}
        for kind, yes_no in (("yes_no", True), ("vqa", False)):
            if chosen := [question for question in questions if question.yes_no == yes_no]:
                found |= dict(self._scores(kind, chosen, advance))
        return found

    def _scores(self, kind: str, questions: Sequence[Question], advance: Advance) -> Iterator[tuple[str, float]]:
        groups, photos = [one.group for one in questions], [one.image for one in questions]
        swap = others(photos)
        yield f"{kind}_questions", float(len(questions))
        by_ending = {"": photos} | ({"_other": [swap[photo] for photo in photos]} if swap else {})
        said: dict[str, list[str]] = {ending: [] for ending in by_ending}
        for start in range(0, len(questions), self._batch_size):
            part = slice(start, start + self._batch_size)
            prompts = self.prompts(questions[part])  # of one batch, because files may have 200,000 questions
            for ending, images in by_ending.items():
                said[ending] += self._say(prompts, images[part], yes_no=kind == "yes_no")
                advance(len(prompts))
        for ending, answers in said.items():
            scores = [vqa_accuracy(answer, one.answers) for answer, one in zip(answers, questions, strict=True)]
            value, error = mean_over_groups(scores, groups, photos)
            yield f"{kind}_accuracy{ending}", value
            if error is not None:
                yield f"{kind}_accuracy{ending}_se", error
        yield f"{kind}_accuracy_question_only", mean_over_groups(question_only(questions), groups, photos).value
        if kind == "vqa":
            commonest = [Counter(map(normalised, one.answers)).most_common(1)[0][0] for one in questions]
            for name, given in (("yes", ["yes"] * len(questions)), ("people", commonest)):
                pairs = zip(given, questions, strict=True)
                yield f"vqa_accuracy_{name}", float(np.mean([vqa_accuracy(each, one.answers) for each, one in pairs]))

    def prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        """Write each question with both answers, and split it where the answers part.

        The tokens that the rows with `Yes` and `No` share are the prompt. The lower-case answers count too, if they
        part from the prompt at the same place.
        """
        image, spelled = self._processor.image_token, ("Yes", "yes", "No", "no")
        conversations = [
            Conversation(number, one.image, [one.image], self._render(self._messages(one.text, answer, image)))
            for number, one in enumerate(questions)
            for answer in spelled
        ]
        rows = [row["input_ids"] for row in self._encode(conversations)]
        found = []
        for start in range(0, len(rows), len(spelled)):
            four = rows[start : start + len(spelled)]
            first, _, other, _ = four
            shared = next(position for position in range(len(first)) if first[position] != other[position])
            alike = [len(row) > shared and (row[:shared] == first[:shared]).all() for row in four]
            yes = {int(row[shared]) for row, same in zip(four[:2], alike[:2], strict=True) if same}
            no = {int(row[shared]) for row, same in zip(four[2:], alike[2:], strict=True) if same}
            ids = torch.from_numpy(np.asarray(first[:shared], np.int64))
            repeats = torch.where(ids == self._processor.image_token_id, self._tokens, 1)
            found.append(Prompt(ids.repeat_interleave(repeats), frozenset(yes - no), frozenset(no - yes)))
        return found

    def _messages(self, text: str, answer: str, image_token: str) -> list[Message]:
        turns = [{"from": "human", "value": f"{PLACEHOLDER}\n{text}\n{SHORT}"}, {"from": "gpt", "value": answer}]
        return read_messages(turns, 1, image_token)

    def _say(self, prompts: Sequence[Prompt], images: Sequence[str], *, yes_no: bool) -> list[str]:
        """Answer prompts, each with a photo."""
        shown = [self._picture(image) for image in images]
        pixels = [self._processor.image_processor(image, return_tensors="pt")["pixel_values"] for image in shown]
        given = self._batch(prompts, left=not yes_no) | {"pixel_values": torch.cat(pixels).to(self._model.device)}
        if not yes_no:
            written = generate(self._model, given, NEW_TOKENS)
            texts = self._processor.tokenizer.batch_decode(written, skip_special_tokens=True)
            return [str(text).strip() for text in texts]
        hidden = stock(self._model).model(**given).last_hidden_state
        last = given["attention_mask"].sum(1) - 1
        logits = self._model.lm_head(hidden[torch.arange(len(last)), last]).float()
        sums = [
            [row[sorted(tokens)].logsumexp(-1) for tokens in (one.yes, one.no)]
            for row, one in zip(logits, prompts, strict=True)
        ]
        return ["yes" if yes > no else "no" for yes, no in sums]

    def _batch(self, prompts: Sequence[Prompt], *, left: bool) -> dict[str, torch.Tensor]:
        """Pad prompts and their mask, on the left with `left`, so that they end together, else on the right."""
        ids = [one.ids for one in prompts]
        padded = {
            "input_ids": (ids, self._processor.tokenizer.pad_token_id or 0),
            "attention_mask": ([torch.ones_like(one) for one in ids], 0),
        }
        side = "left" if left else "right"
        return {
            name: pad_sequence(each, batch_first=True, padding_value=value, padding_side=side).to(self._model.device)
            for name, (each, value) in padded.items()
        }


def ask(asker: Asker, questions: Sequence[Question], model: Any, reporter: Reporter) -> dict[str, float]:  # noqa: ANN401
    """Ask a model, an `AlignedLlava` or an `AttachedModel`, all questions, see `Asker`."""
    with evaluating(model), reporter.progress("questions", 2 * len(questions)) as advance:
        return asker(questions, advance)
