"""Words as tokens, on tokenizers of every way to write a space, trained here; and on the packaged LLM's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.wordlists import load_wordlist
from trainer.words import llm_word_table, whole_words, word_tokens

CORPUS = ["a cat sat, Cat and a café", "the cat's ain't able-bodied bobcat, a x 42 naïve"] * 40
MARK = "▁"


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def byte_level(add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 3 and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer)


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """SentencePiece as converted today; "always" and "first" add the space before a text by themselves."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer)


def normalized(prepend: bool) -> PreTrainedTokenizerFast:
    """As Llama 2 (prepends the space, whatever the text begins with) and Gemma (does not): spaces by a normalizer."""
    tokenizer = metaspace("first").backend_tokenizer
    tokenizer.pre_tokenizer = None
    spaces = [normalizers.Prepend(MARK)] if prepend else []
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", MARK)])
    return wrap(tokenizer)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte-level, adds a space": lambda: byte_level(add_prefix_space=True),
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "Llama 2": lambda: normalized(prepend=True),
    "Gemma": lambda: normalized(prepend=False),
}
ADDS_A_SPACE = {"byte-level, adds a space", "metaspace always", "metaspace first", "Llama 2"}


@pytest.fixture(params=TOKENIZERS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    found: list[str] = [piece.replace("Ġ", MARK) for piece in tokenizer.convert_ids_to_tokens(ids)]
    return found


def test_a_word_has_its_space_once(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ((cat, bodied),) = word_tokens(tokenizer, ["cat", "able-bodied"], "space")
    assert pieces(tokenizer, cat) == [f"{MARK}cat"]
    assert "".join(pieces(tokenizer, bodied)) == f"{MARK}able-bodied"
    assert tokenizer.bos_token_id not in cat
    assert tokenizer("a cat")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("a cat")["input_ids"][-1:] == cat


def test_a_word_without_its_space(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ((cat,),) = word_tokens(tokenizer, ["cat"], "none")
    assert "".join(pieces(tokenizer, cat)) == (f"{MARK}cat" if kind in ADDS_A_SPACE else "cat")


def test_both_forms_are_those_of_each(kind: str) -> None:
    tokenizer, words = TOKENIZERS[kind](), ["cat", "café", "ain't"]
    forms = word_tokens(tokenizer, words, "both-mean")
    assert forms == [*word_tokens(tokenizer, words, "space"), *word_tokens(tokenizer, words, "none")]
    assert word_tokens(tokenizer, [], "both-mean") == [[], []]


def test_a_tokenizer_that_joins_words_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "a": 2, "a cat": 3}, unk_token="<unk>"))
    with pytest.raises(UserError, match="joins the word 'cat'"):
        word_tokens(wrap(tokenizer), ["cat"], "space")


def test_whole_words(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.add_tokens([f"{MARK}<extra>", "Ġ<extra>", "bird"])
    tokenizer.add_special_tokens({"additional_special_tokens": [f"{MARK}image", "Ġimage"]})
    vocabulary = len(tokenizer)
    found = whole_words(tokenizer, vocabulary)
    by_piece = {pieces(tokenizer, [id_])[0]: word for id_, word in found.items()}
    assert by_piece[f"{MARK}cat"] == by_piece[f"{MARK}Cat"] == "cat"
    assert {"cat", "and"} <= set(found.values())
    assert not {"a", "x", "42", "image", "bird", "<extra>", ""} & set(found.values())
    assert list(found) == sorted(found)
    for id_, word in found.items():
        assert tokenizer.decode([id_]).strip().lower() == word
    cut = sorted(found)[len(found) // 2]
    assert whole_words(tokenizer, cut) == {id_: word for id_, word in found.items() if id_ < cut}


def vocabulary_of(tokens: list[str]) -> PreTrainedTokenizerFast:
    tokens = ["<unk>", "<s>", *tokens]
    return wrap(Tokenizer(models.WordLevel({token: id_ for id_, token in enumerate(tokens)}, unk_token="<unk>")))


def test_which_tokens_are_words() -> None:
    """Token by token; "Ã©" and "âĢĻ" are the bytes of "é" and of the right quotation mark."""
    good = {"ĠcafÃ©": "café", "Ġain't": "ain't", "ĠX-Ray": "x-ray", "ĠitâĢĻs": "it\u2019s", "ĠÃīTÃī": "été"}
    bad = ["cat", "Ġ", "Ġa", "Ġ-ab", "Ġab-", "Ġa--b", "Ġa1", "Ġa_b", "ĠĠab", "ĠabÃ", "Ġab.", "▁dog"]
    tokenizer = vocabulary_of([*good, *bad])
    assert list(whole_words(tokenizer, len(tokenizer)).values()) == list(good.values())


def test_the_mark_of_the_other_kind_is_a_letter() -> None:
    tokenizer = vocabulary_of(["▁Ġisem", "▁cat", "Ġisem"])
    assert list(whole_words(tokenizer, len(tokenizer)).values()) == ["ġisem", "cat"]


def test_a_tokenizer_without_marks_is_refused() -> None:
    tokenizer = vocabulary_of(["cat", "##s"])
    with pytest.raises(UserError, match="expected a byte-level BPE or SentencePiece"):
        whole_words(tokenizer, len(tokenizer))


@pytest.mark.parametrize("prefix", ["space", "none", "both-mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_word_table_is_the_mean_over_tokens_and_forms(prefix: str, dtype: torch.dtype) -> None:
    tokenizer, words = byte_level(), ["cat", "able-bodied", "naïve bobcat", "x"]
    embeddings = torch.randn(len(tokenizer), 6, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    found = llm_word_table(embeddings, tokenizer, words, prefix)
    texts = {"space": [" {}"], "none": ["{}"], "both-mean": [" {}", "{}"]}[prefix]
    for row, word in zip(found, words, strict=True):
        mean = torch.zeros(6, dtype=torch.float64)
        for text in texts:
            ids = tokenizer(text.format(word), add_special_tokens=False)["input_ids"]
            mean += sum(embeddings.detach()[id_].double() for id_ in ids) / len(ids) / len(texts)
        close = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(row.double(), mean, atol=close, rtol=close)
    none = llm_word_table(embeddings, tokenizer, [], prefix)
    assert (none.shape, none.dtype, none.requires_grad) == ((0, 6), dtype, False)
    assert found.dtype == dtype
    assert not found.requires_grad


def unigram() -> PreTrainedTokenizerFast:
    """As T5, without a token for what it lacks but the model's own."""
    letters = [(letter, -2.0) for letter in f"{MARK}act"]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("<s>", 0.0), *letters], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return wrap(tokenizer)


def lacking_snow() -> PreTrainedTokenizerFast:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("☃", "")
    return tokenizer


@pytest.mark.parametrize("make", [lacking_snow, unigram, lambda: metaspace("first")])
def test_words_without_tokens_are_named(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    """Nor does <unk> stand for a word, alone or within one."""
    two = "2 words, such as '☃', '☃☃', or for parts of them; leave them"
    for words, said in ((["cat", "☃"], "the word '☃', or for parts of it; leave it"), (["☃", "☃☃"], two)):
        for prefix in ("none",) if make is lacking_snow else ("none", "space", "both-mean"):
            with pytest.raises(UserError, match=f"no token for {said} out of the word list, and label again"):
                word_tokens(make(), words, prefix)
    if make is unigram:
        with pytest.raises(UserError, match="'cat☃'"):
            llm_word_table(torch.zeros(600, 2), make(), ["cat", "cat☃"], "none")


def test_an_unk_token_that_stands_for_nothing_refuses_no_word() -> None:
    """As GPT-2's <|endoftext|>; here it is even a letter."""
    tokenizer = byte_level()
    tokenizer.unk_token = "c"
    assert tokenizer.unk_token_id in word_tokens(tokenizer, ["cxc☃"], "none")[0][0]


@pytest.mark.real
def test_the_packaged_llm_s_tokens(smollm2: Any) -> None:
    words = load_wordlist("2of12").words
    with_space, without = word_tokens(smollm2, words, "both-mean")
    assert with_space == smollm2([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    assert without == smollm2(list(words), add_special_tokens=False)["input_ids"]
    assert with_space[words.index("cat")] == smollm2.convert_tokens_to_ids(["Ġcat"])
    assert without[words.index("cat")] == smollm2.convert_tokens_to_ids(["cat"])

    found = whole_words(smollm2, len(smollm2))
    single = {ids[0]: word for word, ids in zip(words, with_space, strict=True) if len(ids) == 1 and len(word) > 1}
    assert len(single) > 10_000
    for id_, word in single.items():
        assert found.get(id_) == word.lower(), word
    for id_, word in found.items():
        assert smollm2.decode([id_]).lower() == f" {word}"
    assert not set(found) & set(range(17))  # its special tokens
    assert not whole_words(smollm2, 17)
