"""Prepares the LLM's tokenizer for a model folder, with `<image>`, a chat template, a pad token and an EOS."""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from sea_pipeline.core.errors import UserError
from trainer.model.chat_template import (
    BOS_FIRST,
    chat_template,
    default_template,
    turn_end,
    with_bos,
    with_ends_as_trained,
    with_own_eos,
    with_prompt_as_trained,
    without_final_eos,
    writes_bos,
)
from trainer.model.fixed_date import with_fixed_date
from trainer.model.message_forms import IMAGE_TOKEN
from trainer.model.prompts import front
from trainer.model.sentence_piece import rebuilt, same_tokenizer
from trainer.model.tokenise import SPACES, adds_space, tokenise

_PROMPTS = (
    f"{IMAGE_TOKEN}\nWhat? ",
    f"Two: {IMAGE_TOKEN}{IMAGE_TOKEN} and one {IMAGE_TOKEN}",
    f"One: {IMAGE_TOKEN}\nWhat? {IMAGE_TOKEN} one",
    f"A {IMAGE_TOKEN}a",
)
"""Texts with images, to compare saved tokenizers with those in memory, and prompts with what is trained."""


def with_image_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add `<image>`, after which a text begins anew.

    Training tokenises the text after an image as a text of its own, see `tokenise.ConversationTokenizer`. A
    processor of transformers tokenises a prompt whole, and a tokenizer that imitates SentencePiece then puts no space
    after the image. Here its normalizer does, so that a prompt has the ids that were trained.

    Returns:
        The same tokenizer, or another with the same ids for any text without an image.
    """
    tokenizer = _exact(tokenizer, IMAGE_TOKEN)
    there = IMAGE_TOKEN in tokenizer.get_added_vocab()
    if there and _as_trained(tokenizer):
        return tokenizer
    spaced = _spaced(tokenizer, IMAGE_TOKEN, _before_text(tokenizer, IMAGE_TOKEN)) if adds_space(tokenizer) else None
    if not there:
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if spaced is None or _as_trained(tokenizer) or not _as_trained(spaced):
        return tokenizer
    return spaced


def _exact(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """Make an added token stand for its own letters alone, and not for spaces around it or for whole words."""
    token = next((one for one in tokenizer.added_tokens_decoder.values() if one.content == name), None)
    if token is None or not (token.lstrip or token.rstrip or token.single_word):
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for one in state["added_tokens"]:
        if one["content"] == name:
            one |= dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    return rebuilt(tokenizer, Tokenizer.from_str(json.dumps(state)))


def _without_gaps(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Name the ids that a vocabulary leaves out, because new tokens get ids from its size on."""
    known = set(tokenizer.get_vocab().values())
    own = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values()
    gaps = set(range(max(own, default=0))) - known
    if not gaps:
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {f"<unused-id-{number}>": number for number in sorted(gaps)}
    return rebuilt(tokenizer, Tokenizer.from_str(json.dumps(state)))


def _as_trained(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Check whether prompts, tokenised whole, have the ids that training gives their pieces."""
    image = (tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),)
    for prompt in (*_PROMPTS, *(f"{IMAGE_TOKEN}{token}" for token in _added(tokenizer))):
        first, *others = [tokens.ids for tokens in tokenise(tokenizer, prompt.split(IMAGE_TOKEN))]
        trained = [*first, *(token for ids in others for token in (*image, *ids))]
        if tokenizer.encode(prompt, add_special_tokens=False) != trained:
            return False
    return True


def begin_with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make texts from the chat template begin with the ids that the tokenizer gives texts without a template.

    These are BOS, see `with_bos`, and after it what SentencePiece puts before a text. Readers tokenise a template's
    text without adding anything, so no space would follow a BOS that is written out.

    Returns:
        The same tokenizer, or another with the same ids for any text in which no BOS is written out.
    """
    own, first = str(tokenizer.chat_template), front(tokenizer)
    if len(first) == 1 and first != [tokenizer.bos_token_id] and not writes_bos(own):  # as BERT's [CLS]
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(first[0])
    template = with_bos(own, tokenizer)
    tokenizer.chat_template = template
    if not template.startswith(BOS_FIRST) or _begins_alike(tokenizer):
        return tokenizer
    bos = str(tokenizer.bos_token)
    spaced = _spaced(tokenizer, bos, rf"\A{_before_text(tokenizer, bos, IMAGE_TOKEN)}")
    return spaced if _begins_alike(spaced) else tokenizer


def _begins_alike(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Check whether a text has the same ids after a written BOS and after the tokenizer's own.

    An EOS that the tokenizer adds after a text does not count.
    """
    first = front(tokenizer)
    return all(
        tokenizer.encode(f"{tokenizer.bos_token}{text}", add_special_tokens=False)
        == first + tokenizer.encode(text, add_special_tokens=False)
        for text in ("A chat", "a", IMAGE_TOKEN, *_PROMPTS, *_added(tokenizer))
    )


def _before_text(tokenizer: PreTrainedTokenizerBase, name: str, *others: str) -> str:
    """Match a special token that a text follows, and not one of the `others` or another added token."""
    after = dict.fromkeys((name, *others, *_added(tokenizer)))
    return rf"{re.escape(name)}(?!{'|'.join(map(re.escape, after))}|\z)"


def _added(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the added tokens that a normalizer sees.

    A text is cut at the others before. Runs of spaces are left out, because a space goes before them as before letters.
    """
    tokens = (token for token in tokenizer.added_tokens_decoder.values() if token.normalized)
    return sorted(token.content for token in tokens if not token.content.startswith(SPACES))


def _spaced(tokenizer: PreTrainedTokenizerBase, name: str, behind: str) -> PreTrainedTokenizerBase:
    """Copy the tokenizer with a normalizer that puts a space after a special token.

    `behind` is a regular expression that matches the token if a space belongs after it.
    """
    copied = rebuilt(tokenizer, tokenizer.backend_tokenizer)
    copied.add_tokens([AddedToken(name, special=True, normalized=True)])
    state = json.loads(copied.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        if token["content"] == name:
            token["normalized"] = True  # only then is it looked for in the normalizer's result
    space = {"type": "Replace", "pattern": {"Regex": behind}, "content": f"{name}{SPACES[1]}"}
    state["normalizer"] = _joined(space, state["normalizer"])
    return rebuilt(tokenizer, Tokenizer.from_str(json.dumps(state)))


def _joined(first: dict[str, Any], others: dict[str, Any] | None) -> dict[str, Any]:
    """Put a normalizer before the others, unless it is among them."""
    there = [] if others is None else others["normalizers"] if others["type"] == "Sequence" else [others]
    every = there if first in there else [first, *there]
    return every[0] if len(every) == 1 else {"type": "Sequence", "normalizers": every}


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> tuple[PreTrainedTokenizerBase, set[int]]:
    """Add `<image>`, the chat template and a pad token, and make the end of a turn the EOS.

    Padding is on the left.

    Args:
        tokenizer: the LLM's own.
        source: the LLM's name in an error.

    Returns:
        The tokenizer, see `with_image_token` and `begin_with_bos`, and the ids that end an answer.

    Raises:
        UserError: it has no eos, or its chat template cannot render a question with its answer.
    """
    if tokenizer.eos_token is None:
        raise UserError(f"{source}: its tokenizer has no eos token; add one to its tokenizer_config.json")
    tokenizer = with_image_token(_without_gaps(tokenizer))
    ends = {tokenizer.eos_token_id}
    _set_template(tokenizer, source)
    tokenizer = begin_with_bos(tokenizer)
    pad_left(tokenizer)
    if tokenizer.pad_token in (None, tokenizer.eos_token):  # trainers that mask padding would mask the EOS, too
        unknown = tokenizer.unk_token
        tokenizer.add_special_tokens({"pad_token": "<pad>" if unknown in (None, tokenizer.eos_token) else unknown})
    return tokenizer, ends | {tokenizer.eos_token_id}


def pad_left(tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad on the left, so that the prompts of a batch end together, where their answers begin.

    Readers of the saved files do the same.
    """
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs["padding_side"] = "left"  # only these are saved; a class may pad on the left by itself


def _set_template(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Make the template take both forms of content, and make the end of its turns the EOS."""
    own, eos = default_template(tokenizer.chat_template, source), str(tokenizer.eos_token)
    own = own and with_prompt_as_trained(with_fixed_date(own))
    for template in (own and without_final_eos(own), own):
        tokenizer.chat_template = chat_template(template)
        end = turn_end(tokenizer, source)
        if end is not None:
            break
    if template and end not in (None, eos):
        tokenizer.chat_template = chat_template(with_own_eos(template, eos))
    tokenizer.eos_token = end or eos
    if end is None:
        tokenizer.chat_template = with_ends_as_trained(tokenizer)


def check_saved_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Read a saved tokenizer again and compare its ids.

    Raises:
        UserError: they are others.
    """
    if not same_tokenizer(AutoTokenizer.from_pretrained(folder), tokenizer, *_PROMPTS):
        raise UserError(
            f"{source}: its tokenizer gives other ids once transformers has saved it; save it as a tokenizer.json with "
            'tokenizer_class "PreTrainedTokenizerFast", and use that folder'
        )
