"""A program that knows nothing of this project: reads exported folders with whichever transformers it is given.

`python reading.py PICTURE OUT FOLDER…` writes to OUT, by folder, logits and texts. It runs under transformers 5 and 4.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image

TURNS = [("user", "<image>\nWhat do you see?"), ("assistant", "a red patch")]
PARTS = [[{"type": "image"}, {"type": "text", "text": "What do you see?"}], [{"type": "text", "text": "a red patch"}]]
WORDS = "The left half is red"


class Hidden:
    """An importer that refuses our packages, which are installed in the same environment."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("trainer", "sea_pipeline"):
            raise ModuleNotFoundError(name)


def answers(tokenizer, chat):
    """What is marked as trained in a conversation."""
    made = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    marks = made["assistant_masks"]
    return tokenizer.decode([token for token, mark in zip(made["input_ids"], marks, strict=True) if mark])


def llava(folder, picture):
    processor = transformers.AutoProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, report = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    strings = [{"role": role, "content": text} for role, text in TURNS]
    lists = [{"role": role, "content": content} for (role, _), content in zip(TURNS, PARTS, strict=True)]
    text = processor.apply_chat_template(lists[:1], add_generation_prompt=True)
    given = processor(images=picture, text=text, return_tensors="pt")
    made = model.generate(**given, max_new_tokens=12, do_sample=False)
    return {
        "report": {name: sorted(keys) for name, keys in report.items() if keys},
        "dtype": str(model.dtype),
        "same": tokenizer.apply_chat_template(strings[:1], tokenize=False, add_generation_prompt=True) == text,
        "answers": answers(tokenizer, strings),
        "eos": tokenizer.eos_token,
        "ids": given["input_ids"].tolist(),
        "pixels": given["pixel_values"].flatten()[::97].tolist(),
        "logits": model(**given).logits[0].tolist(),
        "made": made[0, given["input_ids"].shape[1] :].tolist(),
    }


def llm(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    given = tokenizer(WORDS, return_tensors="pt", return_token_type_ids=False)
    return {
        "report": {name: sorted(keys) for name, keys in report.items() if keys},
        "type": type(model).__name__,
        "ids": given["input_ids"].tolist(),
        "logits": model(**given).logits[0].tolist(),
    }


@torch.no_grad()
def main():
    sys.meta_path.insert(0, Hidden())
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    picture, out, *folders = sys.argv[1:]
    image = Image.open(picture)
    found = {}
    for folder in folders:
        kind = json.loads((Path(folder) / "config.json").read_text())["model_type"]
        found[folder] = llava(folder, image) if kind == "llava" else llm(folder)
    Path(out).write_text(json.dumps({"version": transformers.__version__, "folders": found}))


if __name__ == "__main__":
    main()
