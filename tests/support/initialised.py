"""Messages in both forms, and model folders loaded and altered: for the tests of `init`."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.support.tiny_models import tiny_vision
from trainer.export.run import ExportSettings, export_model
from trainer.model.assemble import init_model
from trainer.model.load import load_model, open_model_folder
from trainer.model.parts import quiet
from trainer.recipes.recipe import Recipe

LIST = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]}]
STRING = [{"role": "user", "content": "<image>\nWhat is it?"}]
ANSWER = [{"role": "assistant", "content": "a red square"}]


def load(folder: Path) -> tuple[Any, Any]:
    with quiet():
        return LlavaForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def around(llm: Path, out: Path, **settings: Any) -> Path:
    """A LLaVA of an LLM and a tiny tower, which stays beside it."""
    return init_model(str(tiny_vision(out.parent / "vision")), str(llm), out, **settings)


def check_export(run: Path, out: Path, picture: Path) -> Any:
    """Exports a run; stock transformers has the logits of our model then. Returns the export's processor."""
    export_model(ExportSettings.of(source=run, out=out))
    with quiet():
        stock: Any = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(out)
    ours = load_model(open_model_folder(run / "model"), Recipe(model=run / "model")).eval()
    text = processor.apply_chat_template(LIST, add_generation_prompt=True)
    given = processor(images=Image.open(picture), text=text, return_tensors="pt")
    torch.testing.assert_close(stock(**given).logits, ours(**given).logits, atol=1e-4, rtol=1e-4)
    return processor


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
