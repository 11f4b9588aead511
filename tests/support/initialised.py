"""Messages in both forms, and model folders loaded and altered: for the tests of `init`."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, LlavaForConditionalGeneration

from trainer.model.parts import quiet

LIST = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]}]
STRING = [{"role": "user", "content": "<image>\nWhat is it?"}]
ANSWER = [{"role": "assistant", "content": "a red square"}]


def load(folder: Path) -> tuple[Any, Any]:
    with quiet():
        return LlavaForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
