"""Tokenizers with settings that few have: a model of one reads a prompt as it was trained, or is refused."""

from pathlib import Path

import pytest
from PIL import Image

from tests.support.initialised import STRING, around, edit, load
from tests.support.tiny_models import tiny_llm
from trainer.attach.folder import open_existing_folder
from trainer.model.folder_check import check_model_folder
from trainer.model.pretrained import read_tokenizer

LIMITS = {
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3, "pad_type_id": 0,
        "pad_token": "<pad>",
    },
}  # fmt: skip


@pytest.mark.parametrize("said", ["tokenizer.json", "tokenizer_config.json"])
def test_no_prompt_is_cut_or_filled(tmp_path: Path, said: str) -> None:
    """By limits of the fine-tuning that an LLM, or a LLaVA that others made, was saved after."""
    limits = LIMITS if said == "tokenizer.json" else {"max_length": 4, "stride": 0, "padding": "max_length"}
    llm = tiny_llm(tmp_path / "llm")
    edit(llm / said, **limits)
    folder = around(llm, tmp_path / "model")
    made = load(folder)[1]
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
