"""Tokenizers with settings that few have: a model of one reads a prompt as it was trained, or is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tests.support.conversations_json import load, record, written
from tests.support.initialised import ANSWER, STRING, around, edit
from tests.support.initialised import load as loaded
from tests.support.refused import refused
from tests.support.tiny_models import CHATML, SENTENCES, tiny_llm
from tests.support.tiny_tokenizers import byte_level
from trainer.attach.folder import open_existing_folder
from trainer.model.folder_check import check_model_folder
from trainer.model.parts import load_tokenizer
from trainer.model.pretrained import read_tokenizer
from trainer.model.tokenizer import prepare_tokenizer

LIMITS = {
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3, "pad_type_id": 0,
        "pad_token": "<pad>",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("said", ["tokenizer.json", "tokenizer_config.json"])
def test_no_prompt_is_cut_or_filled(tmp_path: Path, said: str) -> None:
    """By limits of the fine-tuning that an LLM, or a LLaVA that others made, was saved after."""
    limits = LIMITS if said == "tokenizer.json" else {"max_length": 4, "stride": 0, "padding": "max_length"}
    llm = tiny_llm(tmp_path / "llm")
    edit(llm / said, **limits)
    folder = around(llm, tmp_path / "model")
    made = loaded(folder)[1]
    edit(folder / said, **limits)
    for processor in (made, check_model_folder(folder).processor, open_existing_folder(folder).processor):
        text = processor.apply_chat_template(STRING, tokenize=False)
        found = processor(images=Image.new("RGB", (32, 32)), text=text)["input_ids"][0]
        one, other = (processor.tokenizer(part)["input_ids"] for part in text.split("<image>"))
        assert len(found) == len(one) + 16 + len(other)
        assert processor.decode(found).replace("<image>" * 16, "<image>") == text


@pytest.mark.parametrize("ends", [0, [0, 2], [], None, -1])
def test_an_eos_that_config_json_alone_names_may_be_id_0(tmp_path: Path, ends: int | list[int] | None) -> None:
    """As GPT-NeoX's."""
    llm = tiny_llm(tmp_path / "llm", eos_token_id=ends)
    edit(llm / "tokenizer_config.json", eos_token=None)
    assert read_tokenizer(str(llm)).eos_token == (None if ends in (None, [], -1) else "<unk>")


def prompt_and_row(tokenizer: Any, tmp_path: Path) -> tuple[list[int], list[int]]:
    """The ids of a chat as readers of the folder tokenise it, saved and read again, and as training does."""
    pairs = [("<image>\nWhat is it?", "a red square")]
    tokenizer.save_pretrained(tmp_path / "saved")
    read = AutoTokenizer.from_pretrained(tmp_path / "saved")
    (row,) = load(written(tmp_path, record(pairs, "a.jpg")), tokenizer, "own")
    return read.apply_chat_template([*STRING, *ANSWER], return_dict=True)["input_ids"], list(row["input_ids"])


def test_new_tokens_take_no_words_id(tmp_path: Path) -> None:
    """In a vocabulary with gaps, as of words that were cut out of a larger one."""
    llm = tiny_llm(tmp_path / "llm", vocab_size=374)
    state = json.loads((llm / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    inner = {part for merge in state["model"]["merges"] for part in merge}
    gone = [word for word, number in vocabulary.items() if number > 300 and word not in inner][:9]
    for word in gone:
        del vocabulary[word]
    state["model"]["merges"] = [merge for merge in state["model"]["merges"] if "".join(merge) not in gone]
    (llm / "tokenizer.json").write_text(json.dumps(state))
    before = load_tokenizer(str(llm))
    model, processor = loaded(around(llm, tmp_path / "model"))
    tokenizer = processor.tokenizer
    highest = max(vocabulary.values())
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [highest + 1, 3]
    texts = [*SENTENCES, f"<unused-id-{highest - 5}>"]
    assert tokenizer(texts)["input_ids"] == before(texts)["input_ids"]
    assert model.get_input_embeddings().num_embeddings > highest + 1


@pytest.mark.parametrize("flags", [("lstrip",), ("rstrip",), ("lstrip", "rstrip"), ("single_word",)])
def test_an_image_token_takes_no_spaces_with_it(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """A row is cut at the token before it is tokenised, so its spaces stay."""
    tokenizer = byte_level()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    (token,) = (one for one in state["added_tokens"] if one["content"] == "<image>")
    token |= dict.fromkeys(flags, True)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    before = tokenizer.encode("A <image>\nA<image>A")
    tokenizer, _ = prepare_tokenizer(tokenizer, "llm")
    assert tokenizer.encode("A <image>\nA<image>A") != before
    prompt, row = prompt_and_row(tokenizer, tmp_path)
    assert prompt[: len(row)] == row


@pytest.mark.parametrize("bos", [None, "<pad>"])
def test_what_comes_before_each_text_comes_before_a_prompt(tmp_path: Path, bos: str | None) -> None:
    """Also if it is not the BOS, as BERT's [CLS]."""
    tokenizer = byte_level(CHATML.replace("im_start", "start").replace("im_end", "end"))
    tokenizer.bos_token = bos
    first = tokenizer.convert_tokens_to_ids("<|im_start|>")
    processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", first)])
    tokenizer.backend_tokenizer.post_processor = processor
    prompt, row = prompt_and_row(prepare_tokenizer(tokenizer, "llm")[0], tmp_path)
    assert row[0] == first != row[1]
    assert prompt[: len(row)] == row


@pytest.mark.slow
def test_no_template_named_default(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm")
    templates = [{"name": name, "template": CHATML} for name in ("tool_use", "rag")]
    edit(llm / "tokenizer_config.json", chat_template=templates)
    with refused("expected a chat template named default; found rag, tool_use; give the one", start=f"{llm}: "):
        around(llm, tmp_path / "model")
    edit(llm / "tokenizer_config.json", chat_template=[templates[0] | {"name": "default"}, templates[1]])
    processor = loaded(around(llm, tmp_path / "model"))[1]
    assert "<|im_start|>" in processor.apply_chat_template(STRING, tokenize=False)
