"""A model that was trained with vicuna_v1 is prompted with it, whatever template the LLM came with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor, AutoTokenizer

from tests.support.conversations_json import load, record, written
from tests.support.heard import Heard
from tests.support.sentence_piece import vicuna_like
from tests.support.tiny_models import CHATML, tiny_llm, tiny_model, tiny_vision
from tests.support.tiny_runs import World, short_recipe
from trainer.export.run import export_model
from trainer.export.settings import ExportSettings
from trainer.model.assemble import init_model
from trainer.model.load import open_model_folder
from trainer.model.parts import load_tokenizer
from trainer.model.prompts import TemplateName
from trainer.model.tokenizer import prepare_tokenizer
from trainer.model.trained_template import needs_template, write_template
from trainer.training.run import train

QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
SAID = "the model's own chat template writes other prompts than data.template vicuna_v1"


def is_prompt_of_training(processor: Any, folder: Path) -> bool:
    """Whether a prompt has the ids that vicuna_v1 trains before the answer."""
    tokenizer = processor.tokenizer
    (row,) = load(written(folder, record([("<image>\nWhat is it?", "A cat.")], "a.jpg")), tokenizer, "vicuna_v1")
    trained = row["input_ids"][: row["trained"].index(True)]
    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return bool(ids == trained)


@pytest.mark.slow
def test_a_run_with_vicuna_v1_saves_it(tiny: World, tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm", template=CHATML)
    start = init_model(str(tiny_vision(tmp_path / "vision")), str(llm), tmp_path / "start")
    heard = {name: Heard() for name in ("own", "vicuna_v1")}
    for name, lines in heard.items():
        recipe = short_recipe(tiny, model=str(start), data={"template": name}, loss={"sea": {"weight": 0}})
        run = train(recipe, tmp_path / name, reporter=lines)
        assert any(line.startswith(SAID) for line in lines.lines) == (name == "vicuna_v1")
        out = export_model(ExportSettings.of(source=run.out, out=tmp_path / f"{name}-out")).out
        half = export_model(ExportSettings.of(source=run.out, checkpoint=0, out=tmp_path / f"{name}-0")).out
        for folder in (run.model, out, half):
            assert is_prompt_of_training(AutoProcessor.from_pretrained(folder), tmp_path) == (name == "vicuna_v1")
            assert ("<|im_start|>" in AutoTokenizer.from_pretrained(folder).chat_template) == (name == "own")
    others = [file.name for file in start.iterdir() if file.suffix != ".safetensors"]
    for file in set(others) - {"chat_template.jinja"}:
        assert (tmp_path / "vicuna_v1" / "model" / file).read_bytes() == (start / file).read_bytes(), file


@pytest.mark.parametrize(
    ("template", "wanted", "differs"),
    [
        (None, "vicuna_v1", False),  # init writes vicuna_v1 itself
        (CHATML, "vicuna_v1", True),
        (CHATML, "own", False),
        (CHATML, "plain", False),
        ("{{ raise_exception('of no use') }}", "vicuna_v1", True),
    ],
)
def test_which_templates_differ(template: str | None, wanted: TemplateName, differs: bool, tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm", template=None if template is None else CHATML)
    tokenizer, _ = prepare_tokenizer(load_tokenizer(str(llm)), "llm")
    if template not in (None, CHATML):
        tokenizer.chat_template = template
    assert needs_template(tokenizer, wanted) == differs


@pytest.mark.slow
def test_a_template_of_an_older_folder_is_replaced(tmp_path: Path) -> None:
    """It stands in files and keys that a reader may take before chat_template.jinja."""
    start = tiny_model(tmp_path / "start")
    (start / "chat_template.jinja").unlink()
    (start / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    for name in ("tokenizer_config.json", "processor_config.json"):
        said = json.loads((start / name).read_text())
        (start / name).write_text(json.dumps(said | {"chat_template": CHATML}))
    processor = open_model_folder(start).processor
    assert needs_template(processor.tokenizer, "vicuna_v1")
    before = processor.tokenizer.chat_template
    shutil.copytree(start, out := tmp_path / "out")
    write_template(processor, out)
    assert processor.tokenizer.chat_template == before
    assert is_prompt_of_training(AutoProcessor.from_pretrained(out), tmp_path)
    assert not needs_template(open_model_folder(out).processor.tokenizer, "vicuna_v1")


@pytest.mark.slow
def test_sentence_pieces_space_follows_the_bos_of_the_new_template(tmp_path: Path) -> None:
    """The start's own template writes its BOS in front of another special token, which no space follows."""
    vicuna_like(tmp_path / "llm")
    tokenizer = load_tokenizer(str(tmp_path / "llm"))
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    prepared, _ = prepare_tokenizer(tokenizer, "llm")
    model = tiny_model(tmp_path / "model")
    processor = open_model_folder(model).processor
    processor.tokenizer = prepared
    prepared.save_pretrained(model)
    write_template(processor, model)
    assert is_prompt_of_training(AutoProcessor.from_pretrained(model), tmp_path)
