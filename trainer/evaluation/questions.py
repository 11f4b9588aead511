"""Measure how many questions about photos a model answers rightly, with their own photos and with others'.

A yes/no question is answered by the probabilities of the two words, a question with people's answers by the text that
the model writes greedily. For comparison, the score that the questions alone allow is reported.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

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
from trainer.measures.metrics import check_finite
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.load import ModelFolder
from trainer.model.message_forms import IMAGE_TOKEN
from trainer.model.prompts import (
    RenderedText,
    TemplateName,
    alike,
    load_prompt,
    load_template,
    read_messages,
)
from trainer.model.tokenise import Conversation, ConversationTokenizer

SHORT = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 appends to a question that asks for a short answer."""
NEW_TOKENS = 10
"""Most tokens of a short answer."""
ANSWERS = ("Yes", "yes", "No", "no")
"""How a yes/no question may be answered, first the two spellings of yes."""
Beginning: TypeAlias = tuple[int, ...]
"""The first tokens of an answer, up to the one that tells it from both spellings of the other answer."""


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
    yes: frozenset[Beginning] = frozenset()
    """The beginnings of `Yes` and `yes`; none of a question that is answered freely."""
    no: frozenset[Beginning] = frozenset()
    """The beginnings of `No` and `no`."""


def question_turns(question: Question, answer: str) -> list[dict[str, str]]:
    """Return a question about a photo and an answer as turns of LLaVA's data."""
    return [{"from": "human", "value": f"{IMAGE_TOKEN}\n{question.text}\n{SHORT}"}, {"from": "gpt", "value": answer}]


def beginnings(rows: Sequence[Sequence[int]]) -> tuple[frozenset[Beginning], frozenset[Beginning]]:
    """Return the beginnings of yes and of no, from the tokens of each of `ANSWERS`."""
    yes, no = rows[:2], rows[2:]
    return _told_apart(yes, no), _told_apart(no, yes)


def _told_apart(rows: Sequence[Sequence[int]], rivals: Sequence[Sequence[int]]) -> frozenset[Beginning]:
    lengths = (1 + max(alike(row, rival) for rival in rivals) for row in rows)
    return frozenset(tuple(map(int, row[:length])) for row, length in zip(rows, lengths, strict=True))


def shared_length(rows: Sequence[Sequence[Any]]) -> int:
    """Count the tokens, or characters, that all rows have in common at their beginning."""
    return min(alike(rows[0], row) for row in rows)


def free_prompt(prompt: str, answered: Sequence[str]) -> str:
    """Choose the text after which a model writes an answer of its own.

    It is the prompt that users of the model's processor get. If training has a text before an answer that differs in
    more than white space, such as an empty thought, it is that text.

    Args:
        prompt: the question as the processor's template writes it before an answer.
        answered: the same question with answers, of which two begin with different letters.
    """
    before = answered[0][: shared_length(answered)]
    return prompt if prompt.split() == before.split() else before


def yes_or_no(prompts: Sequence[Any], logits: Callable[[Beginning], torch.Tensor]) -> list[str]:
    """Answer each prompt by the probabilities of all spellings of yes and of no.

    Args:
        prompts: B prompts with `yes` and `no`.
        logits: returns the logits of the token that follows each prompt and some tokens, float32 (B, V).

    Raises:
        UserError: the logits are not finite, which would be a "no".
    """
    every = [one.yes | one.no for one in prompts]
    contexts = {beginning[:end] for each in every for beginning in each for end in range(len(beginning))}
    # Those of the first token are not normalised, because all answers to a prompt share their sum.
    after = {given: logits(given).log_softmax(-1) if given else logits(given) for given in sorted(contexts, key=len)}

    def score(row: int, chosen: frozenset[Beginning]) -> torch.Tensor:
        parts = [[after[one[:end]][row, token] for end, token in enumerate(one)] for one in sorted(chosen)]
        return torch.stack([torch.stack(each).sum() for each in parts]).logsumexp(-1)

    scores = [torch.stack([score(row, one.yes), score(row, one.no)]) for row, one in enumerate(prompts)]
    check_finite(torch.stack(scores).clamp(min=0), "--questions", "the LLM's logits")  # -inf is no probability
    return ["yes" if yes > no else "no" for yes, no in scores]


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
        self._render = load_template(template, processor.tokenizer)
        self._prompt = load_prompt(template, processor.tokenizer)
        self._encode = ConversationTokenizer(processor.tokenizer, self._tokens, UNCUT)

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
            yield from mean_over_groups(scores, groups, photos).named(f"{kind}_accuracy{ending}")
        yield f"{kind}_accuracy_question_only", mean_over_groups(question_only(questions), groups, photos).value
        if kind == "vqa":
            commonest = [Counter(map(normalised, one.answers)).most_common(1)[0][0] for one in questions]
            for name, given in (("yes", ["yes"] * len(questions)), ("people", commonest)):
                pairs = zip(given, questions, strict=True)
                yield f"vqa_accuracy_{name}", float(np.mean([vqa_accuracy(each, one.answers) for each, one in pairs]))

    def prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        """Write each question up to its answer.

        A yes/no question is written with each of `ANSWERS`; the tokens that all rows share are the prompt. For any
        other question see `free_prompt`.
        """
        texts = [self._texts(one) for one in questions]
        conversations = [
            Conversation(number, one.image, [one.image], text)
            for number, (one, written) in enumerate(zip(questions, texts, strict=True))
            for text in written
        ]
        rows = iter([row["input_ids"] for row in self._encode(conversations)])
        return [self._split([next(rows) for _ in written]) for written in texts]

    def _texts(self, question: Question) -> list[RenderedText]:
        """Write a yes/no question with each answer, and any other question up to its answer."""
        chats = [read_messages(question_turns(question, answer), 1) for answer in ANSWERS]
        if question.yes_no:
            return [self._render(chat) for chat in chats]
        text = free_prompt(self._prompt(chats[0][:-1]), [self._render(chat).text for chat in chats])
        return [RenderedText(text, [(0, len(text))])]  # marked as trained, because rows that train nothing are refused

    def _split(self, rows: Sequence[Any]) -> Prompt:
        """Split the rows of a question where their answers begin."""
        start = shared_length(rows)
        ids = torch.from_numpy(np.asarray(rows[0][:start], np.int64))
        repeats = torch.where(ids == self._processor.image_token_id, self._tokens, 1)
        prompt = Prompt(ids.repeat_interleave(repeats))
        return prompt if len(rows) == 1 else Prompt(prompt.ids, *beginnings([row[start:] for row in rows]))

    def _say(self, prompts: Sequence[Prompt], images: Sequence[str], *, yes_no: bool) -> list[str]:
        """Answer prompts, each with a photo."""
        shown = [self._picture(image) for image in images]
        read = [self._processor.image_processor(image, return_tensors="pt")["pixel_values"] for image in shown]
        pixels = {"pixel_values": torch.cat(read).to(self._model.device)}
        if yes_no:
            return yes_or_no(prompts, lambda after: self._logits([_extended(one, after) for one in prompts], pixels))
        written = generate(self._model, self._batch(prompts, left=True) | pixels, NEW_TOKENS)
        texts = self._processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def _logits(self, prompts: Sequence[Prompt], pixels: dict[str, torch.Tensor]) -> torch.Tensor:
        given = self._batch(prompts, left=False) | pixels
        hidden = stock(self._model).model(**given).last_hidden_state
        last = given["attention_mask"].sum(1) - 1
        logits: torch.Tensor = self._model.lm_head(hidden[torch.arange(len(last)), last]).float()
        return logits

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


def _extended(prompt: Prompt, tokens: Beginning) -> Prompt:
    return prompt._replace(ids=torch.cat([prompt.ids, torch.tensor(tokens, dtype=torch.int64)]))


def ask(asker: Asker, questions: Sequence[Question], model: Any, reporter: Reporter) -> dict[str, float]:  # noqa: ANN401
    """Ask a model, an `AlignedLlava` or an `AttachedModel`, all questions, see `Asker`."""
    with evaluating(model), reporter.progress("questions", 2 * len(questions)) as advance:
        return asker(questions, advance)
