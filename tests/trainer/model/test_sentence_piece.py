"""SentencePiece's own ids from transformers' tokenizers: as loaded, as saved, as trained, and in a prompt."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from sea_pipeline.core.errors import UserError
from tests.support.conversations_json import Pairs, load, record, written
from tests.support.initialised import edit
from tests.support.refused import refused
from tests.support.sentence_piece import CODE, Slow, sentence_piece, vicuna_like
from tests.support.tiny_models import CHATML
from tests.support.tiny_tokenizers import byte_level
from trainer.model.parts import load_tokenizer
from trainer.model.prompts import VICUNA_SYSTEM
from trainer.model.sentence_piece import TEXTS
from trainer.model.tokenise import tokenise
from trainer.model.tokenizer import check_saved_tokenizer, prepare_tokenizer, with_image_token

ODD = [*TEXTS, *CODE, "double  space", " one", "   three", "a </s> b", "</s>USER", " </s>", "\u2581x", "x\u2581\u2581y"]
SAID = [
    "A photo of a jay.", "colour", " leading", "  two", "trailing  ", "\nline", "a\n    b\n", "\u732b \U0001f642",
    "x</s>y", "</s>", "1,234.56", "USER: hi", "\ttab", "\u2581under",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("vicuna")
    vicuna_like(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def prepared(folder: Path) -> PreTrainedTokenizerBase:
    return prepare_tokenizer(load_tokenizer(str(folder)), "vicuna")[0]


def ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return [one.ids for one in tokenise(tokenizer, texts)]


@pytest.mark.slow
@pytest.mark.usefixtures("every_text")
def test_ids_are_sentence_pieces(folder: Path, model: Any, prepared: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    expected = [Slow(model)(text) for text in ODD]
    assert any("\u2581\u2581" in model.id_to_piece(one) for text in expected for one in text), (
        "runs of spaces are pieces"
    )
    assert ids(load_tokenizer(str(folder)), ODD) == expected
    assert ids(prepared, ODD) == expected
    prepared.save_pretrained(tmp_path)
    assert ids(AutoTokenizer.from_pretrained(tmp_path), ODD) == expected


@pytest.mark.slow
def test_a_text_without_special_tokens_is_sentence_pieces_own(model: Any, prepared: PreTrainedTokenizerBase) -> None:
    assert ids(prepared, list(TEXTS)) == model.encode(list(TEXTS))


@pytest.mark.slow
def test_merges_in_another_order_are_mended(folder: Path, model: Any, tmp_path: Path) -> None:
    """transformers 5.23 orders merges by id: a run of spaces is then merged before the space of a word."""
    loaded = AutoTokenizer.from_pretrained(folder)
    state = json.loads(loaded.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["merges"].sort(key=lambda merge: vocabulary["".join(merge)])
    shutil.copytree(folder, tmp_path / "llm")
    loaded._tokenizer = Tokenizer.from_str(json.dumps(state))
    loaded.save_pretrained(tmp_path / "llm")
    expected = [Slow(model)(text) for text in ODD]
    assert ids(AutoTokenizer.from_pretrained(tmp_path / "llm"), ODD) != expected
    assert ids(load_tokenizer(str(tmp_path / "llm")), ODD) == expected


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"add_dummy_prefix": False},
    {"byte_fallback": False, "vocab_size": 220},
    {"user_defined_symbols": ["<b>", "\n\n", "\u2581\u2581\u2581\u2581"]},
    {"model_type": "unigram", "vocab_size": 330, "hard_vocab_limit": False},
    {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    {"name": "spiece.model", "tokenizer_class": "T5Tokenizer"},
])  # fmt: skip
def test_what_cannot_be_mended_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    name, kind = options.pop("name", "tokenizer.model"), options.pop("tokenizer_class", "LlamaTokenizer")
    vicuna_like(tmp_path / "llm", **options)
    (tmp_path / "llm" / "tokenizer.model").rename(tmp_path / "llm" / name)
    edit(tmp_path / "llm" / "tokenizer_config.json", tokenizer_class=kind)
    with refused(match=rf"{name} gives \[.* remove {name}$"):
        load_tokenizer(str(tmp_path / "llm"))


@pytest.mark.slow
def test_files_of_two_models_are_refused_with_both_ids(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "llm")
    sentence_piece(tmp_path / "llm" / "tokenizer.model", vocab_size=320)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "llm")
    with refused(match=r"gives .* the ids \[.*\]; tokenizer\.model gives \[.*\]; copy"):
        load_tokenizer(str(tmp_path / "llm"))


def test_a_tokenizer_json_is_taken_to_the_letter(tmp_path: Path) -> None:
    """transformers rebuilds a LlamaTokenizer from the vocabulary alone; here the file says byte-level."""
    byte_level().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    expected = [one.ids for one in Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode_batch(ODD)]
    found = load_tokenizer(str(tmp_path))(ODD, add_special_tokens=False)["input_ids"]
    assert found == expected


# LLaVA's own way, by SentencePiece alone


def llava_ids(slow: Slow, prompt: str, image: int) -> list[int]:
    first, *others = prompt.split("<image>")
    found = [1, *slow(first)]
    for piece in others:
        found += [image, *slow(piece)]
    return found


def conversations() -> list[tuple[Pairs, Any]]:
    rows: list[tuple[Pairs, Any]] = [([("<image>\nDescribe.", said)], "a.jpg") for said in SAID]
    rows += [([(f"See {said}\n<image>", "Fine.")], "a.jpg") for said in SAID]
    rows += [([("<image>\nA?", "B"), ("C?", said)], "a.jpg") for said in SAID]
    rows += [([(f"One <image>{said}<image> two", said)], ["a.jpg", "b.jpg"]) for said in SAID]
    return [*rows, ([("<image>", "B")], "a.jpg"), ([("Hello", "Hi"), ("  x", "y")], None)]


def asked(question: str) -> str:
    if question.count("<image>") != 1:
        return question
    return ("<image>\n" + question.replace("<image>", "").strip()).strip()


@pytest.mark.slow
def test_conversations_have_llavas_ids(tmp_path: Path, model: Any, prepared: PreTrainedTokenizerBase) -> None:
    slow, image = Slow(model), prepared.convert_tokens_to_ids("<image>")
    data = written(tmp_path, *(record(pairs, images) for pairs, images in conversations()))
    for (pairs, _), row in zip(conversations(), load(data, prepared, "vicuna_v1"), strict=True):
        turns = "".join(f"USER: {asked(question)} ASSISTANT: {answer}</s>" for question, answer in pairs)
        assert row["input_ids"] == llava_ids(slow, f"{VICUNA_SYSTEM} {turns}", image), pairs
    data = written(tmp_path, *(record([("<image>", said)], "a.jpg") for said in SAID), name="plain.json")
    for said, row in zip(SAID, load(data, prepared, "plain"), strict=True):
        assert row["input_ids"] == llava_ids(slow, f"<image>{said}\n", image), said
        assert row["trained"] == [False, False] + [True] * (len(row["input_ids"]) - 2), said


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
def test_a_prompt_has_the_ids_that_were_trained(tmp_path: Path, legacy: bool) -> None:
    """What a processor makes of a prompt, as it tokenises it whole; and of a chat, in whose text the BOS is written.

    Readers of a chat template tokenise its text without adding anything, and training adds the BOS.
    """
    vicuna_like(tmp_path / "llm", legacy=legacy)
    own = load_tokenizer(str(tmp_path / "llm"))
    tokenizer, _ = prepare_tokenizer(load_tokenizer(str(tmp_path / "llm")), "vicuna")
    tokenizer.save_pretrained(tmp_path / "saved")
    reader = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("A photo", "<image>\nA", "\nline", "", "1", "a</s>b"):
        assert reader.encode(f"<s>{text}", add_special_tokens=False) == reader.encode(text), text
    for text in (*ODD, "x<s>y", "</s>a<s>"):
        assert ids(reader, [text]) == ids(own, [text]), text
    data = written(tmp_path, *(record(pairs, images) for pairs, images in conversations()))
    for (pairs, _), row in zip(conversations(), load(data, tokenizer, "vicuna_v1"), strict=True):
        question = asked(pairs[0][0])
        prompt = reader(f"{VICUNA_SYSTEM} USER: {question} ASSISTANT:")["input_ids"]
        assert prompt == row["input_ids"][: len(prompt)], question
        chat = [{"role": "user", "content": question}]
        assert reader.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] == prompt


def test_a_chat_begins_as_trained_if_the_llm_adds_an_eos(tmp_path: Path) -> None:
    """A template's text has SentencePiece's space after its written BOS, as training has after the one it adds."""
    vicuna_like(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"add_eos_token": True}))
    tokenizer, _ = prepare_tokenizer(load_tokenizer(str(tmp_path)), "llm")
    data = written(tmp_path, record([("What?", "A cat.")]))
    (own,), (vicuna,) = (load(data, tokenizer, name) for name in ("own", "vicuna_v1"))
    assert own["input_ids"] == vicuna["input_ids"]


@pytest.mark.parametrize("normalized", [True, False])
def test_no_space_comes_between_special_tokens(tmp_path: Path, normalized: bool) -> None:
    """After a written BOS, and after an image that a question ends with."""
    vicuna_like(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    names = ("<|im_start|>", "<|im_end|>", "\u2581\u2581\u2581")
    tokenizer.add_tokens([AddedToken(name, normalized=normalized) for name in names])
    tokenizer.chat_template = CHATML
    chat = [{"role": "user", "content": "<image>"}]
    one, other = str(tokenizer.apply_chat_template(chat, tokenize=False)).split("<image>")
    own = [tokenizer.encode(one), tokenizer.encode(other, add_special_tokens=False)]
    tokenizer, _ = prepare_tokenizer(tokenizer, "llm")
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert tokenizer.apply_chat_template(chat, return_dict=False) == [*own[0], image, *own[1]]
    (row,) = load(written(tmp_path, record([("<image>", "A cat.")], "a.jpg")), tokenizer, "own")
    assert row["input_ids"][: len(own[0])] == own[0]
    assert tokenizer.encode("<s>A<image>A", add_special_tokens=False) == [
        *tokenizer.encode("A"),
        image,
        *ids(tokenizer, ["A"])[0],
    ]


def test_the_image_token_is_added_once(prepared: PreTrainedTokenizerBase) -> None:
    again = with_image_token(prepared)
    assert again.backend_tokenizer.to_str() == prepared.backend_tokenizer.to_str()
    assert again.special_tokens_map == prepared.special_tokens_map
    assert (again.padding_side, again.model_max_length) == (prepared.padding_side, prepared.model_max_length)


@pytest.mark.slow
def test_a_folder_of_an_earlier_version_gets_the_space(folder: Path, prepared: PreTrainedTokenizerBase) -> None:
    earlier = load_tokenizer(str(folder))
    earlier.add_tokens(["<image>"], special_tokens=True)
    prompt = "USER: <image><image>\nWhat? ASSISTANT:"
    assert earlier(prompt)["input_ids"] != prepared(prompt)["input_ids"]
    assert with_image_token(earlier)(prompt)["input_ids"] == prepared(prompt)["input_ids"]


@pytest.mark.slow
def test_a_saved_tokenizer_that_differs_is_refused(prepared: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    prepared.save_pretrained(tmp_path)
    check_saved_tokenizer(tmp_path, prepared, "llm")
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(state | {"normalizer": None}))
    with pytest.raises(UserError, match="gives other ids once transformers has saved it"):
        check_saved_tokenizer(tmp_path, prepared, "llm")
