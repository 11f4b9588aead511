"""Give a trained model the chat template that its rows were written with, where its start has another one."""

import copy
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Reporter
from sea_pipeline.storage.json_files import read_json
from trainer.model.chat_template import chat_template
from trainer.model.message_forms import IMAGE_TOKEN
from trainer.model.prompts import Message, TemplateName, load_template
from trainer.model.tokenizer import begin_with_bos

_SAMPLE: list[Message] = [
    {"role": "user", "content": f"{IMAGE_TOKEN}\nWhat is it?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "And that?"},
    {"role": "assistant", "content": "A mat."},
]


def needs_template(tokenizer: PreTrainedTokenizerBase, template: TemplateName) -> bool:
    """Tell whether prompts of the tokenizer's own chat template differ from rows that `template` wrote.

    Those of `plain` are captions alone, which nobody prompts for.
    """
    if template != "vicuna_v1":
        return False
    try:
        own = load_template("own", tokenizer)(_SAMPLE).text
    except UserError:
        return True
    return own.removeprefix(tokenizer.bos_token or "") != load_template(template, tokenizer)(_SAMPLE).text


def say_template(tokenizer: PreTrainedTokenizerBase, template: TemplateName, reporter: Reporter) -> None:
    """Say which chat template a run's model will have, if not its own."""
    if needs_template(tokenizer, template):
        reporter.message(
            f"the model's own chat template writes other prompts than data.template {template}, so the trained model "
            f"gets {template} as its chat template"
        )


def set_template(processor: Any, template: TemplateName) -> None:  # noqa: ANN401 - one class per family
    """Give a processor the chat template that `template`'s rows need."""
    if needs_template(processor.tokenizer, template):
        processor.chat_template = processor.tokenizer.chat_template = chat_template(None)


def write_template(processor: Any, folder: Path) -> None:  # noqa: ANN401 - one class per family
    """Put vicuna_v1 into a model folder as its chat template.

    Args:
        processor: the folder's, which stays as it is.
        folder: holds the files of a processor and a tokenizer.
    """
    own = copy.deepcopy(processor.tokenizer)
    own.chat_template = chat_template(None)
    tokenizer = begin_with_bos(own)
    if tokenizer is not own:  # vicuna_v1 begins with a BOS and text, and the start's own template with something else
        tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").unlink(missing_ok=True)
    for name in ("tokenizer_config.json", "processor_config.json"):
        said = read_json(folder / name, absent={})
        if said.pop("chat_template", None) is not None:
            (folder / name).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template, "utf-8")
