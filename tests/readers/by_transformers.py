"""A program that knows nothing of this project: reads exported folders with whichever transformers it is given.

`python by_transformers.py PICTURES OUT FOLDER… -- FOLDER…` writes to OUT, by folder, what the libraries find in it, or
why they stop: the model's class with processor and tokenizer, and the pipeline. Behind the dashes are folders of which
one chat is enough, without the pipeline. It runs under transformers 5 and 4.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image

PHOTO, WIDE = "photo.png", "wide.png"
CHATS = {
    "one": [("user", [PHOTO], "What do you see?")],
    "another size": [("user", [WIDE], "Which colour is the left half?")],
    "two images": [("user", [PHOTO, WIDE], "What is the difference between the photo and the picture?")],
    "two turns": [
        ("user", [PHOTO], "What do you see?"),
        ("assistant", [], "a red patch"),
        ("user", [], "Is the right half red, too?"),
    ],
}
"""Turns: a role, the images before its text, the text."""
BATCH = ("one", "two turns")
"""Two prompts of different length."""
ANSWER = "a red patch"
WORDS = "The left half is red"
PAIRS = [("The left half", " is red"), ("What do you see in the image? I see", " a blue and a yellow patch")]
"""Contexts of different length with what may follow."""
SAID = [("user", "What do you see?"), ("assistant", ANSWER), ("user", "Is it?")]
"""A chat without images."""
NEW_TOKENS = 8


class Hidden:
    """An importer that refuses our packages, which are installed in the same environment."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("trainer", "sea_pipeline"):
            raise ModuleNotFoundError(name)


def as_strings(chat):
    """With `<image>` in the text, as some programs write it for a tokenizer."""
    return [{"role": role, "content": "<image>\n" * len(images) + text} for role, images, text in chat]


def as_parts(chat, pictures):
    """With lists of parts, as a processor and the pipeline take it."""
    return [
        {
            "role": role,
            "content": [{"type": "image", "image": pictures[image]} for image in images]
            + [{"type": "text", "text": text}],
        }
        for role, images, text in chat
    ]


def answers(tokenizer, chat):
    """What is marked as trained in a conversation."""
    made = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    marks = made["assistant_masks"]
    return tokenizer.decode([token for token, mark in zip(made["input_ids"], marks, strict=True) if mark])


def until(ids, ends):
    """Generated ids up to the first that ends a turn, without what pads them."""
    stops = [place for place, token in enumerate(ids) if token in ends]
    return ids[: stops[0] + 1] if stops else ids


def prompted(processor, chats, **settings):
    return processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **settings
    )


def one_chat(model, processor, tokenizer, chat, pictures):
    parts, strings = as_parts(chat, pictures), as_strings(chat)
    given = prompted(processor, parts)
    made = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
    texts = [
        each.apply_chat_template(content, tokenize=False, add_generation_prompt=True)
        for each, content in ((processor, parts), (tokenizer, strings), (tokenizer, parts))
    ]
    asked = tokenizer.apply_chat_template(strings, tokenize=True, add_generation_prompt=True, return_dict=True)
    return {
        "ids": given["input_ids"][0].tolist(),
        "tokenizer ids": asked["input_ids"],
        "texts": len(set(texts)),
        "pixels": given["pixel_values"].flatten()[::97],
        "logits": model(**given).logits[0],
        "made": made[0, given["input_ids"].shape[1] :].tolist(),
    }


def batched(model, processor, chats, pictures):
    given = prompted(processor, [as_parts(chat, pictures) for chat in chats], padding=True)
    made = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
    ends = model.generation_config.eos_token_id
    return {
        "lengths": given["attention_mask"].sum(1).tolist(),
        "logits": model(**given).logits[:, -1],
        "made": [until(ids, ends) for ids in made[:, given["input_ids"].shape[1] :].tolist()],
    }


def piped(folder, chats, pictures):
    """What the pipeline feeds the model, what that makes of it, and its answer as text."""
    pipe = transformers.pipeline("image-text-to-text", model=folder, device="cpu")
    settings = {"generate_kwargs": {"max_new_tokens": NEW_TOKENS, "do_sample": False}}
    found = {}
    for name, chat in chats.items():
        parts = as_parts(chat, pictures)
        (told,) = pipe(text=parts, return_tensors=True, **settings)
        (said,) = pipe(text=parts, return_full_text=False, **settings)
        found[name] = {"ids": told["generated_token_ids"].tolist(), "text": said["generated_text"]}
    return found


def llava(folder, asked, pictures):
    model, report = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chats = {name: one_chat(model, processor, tokenizer, chat, pictures) for name, chat in asked.items()}
    return {
        "report": {name: sorted(keys) for name, keys in report.items() if keys},
        "dtype": str(model.dtype),
        "answers": answers(tokenizer, as_strings([*CHATS["one"], ("assistant", [], ANSWER)])),
        "eos": tokenizer.eos_token,
        "chats": chats,
        "batch": batched(model, processor, [asked[name] for name in BATCH], pictures) if len(asked) > 1 else None,
    }


def llm(folder):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(WORDS, return_tensors="pt", return_token_type_ids=False)
    return {
        "report": {name: sorted(keys) for name, keys in report.items() if keys},
        "type": type(model).__name__,
        "ids": given["input_ids"][0].tolist(),
        "logits": model(**given).logits[0],
    }


def tried(read, *arguments):
    """What a reader says, or the error that stops it."""
    try:
        return read(*arguments)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}


@torch.no_grad()
def main():
    sys.meta_path.insert(0, Hidden())
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    images, out, *folders = sys.argv[1:]
    pictures = {name: Image.open(Path(images, name)) for name in (PHOTO, WIDE)}
    whole = folders[: folders.index("--")]
    found = {}
    for folder in whole + folders[len(whole) + 1 :]:
        kind = json.loads(Path(folder, "config.json").read_text())["model_type"]
        if kind != "llava":
            found[folder] = {"model": tried(llm, folder)}
        elif folder in whole:
            found[folder] = {"model": tried(llava, folder, CHATS, pictures)}
            found[folder]["pipeline"] = tried(piped, folder, CHATS, pictures)
        else:
            found[folder] = {"model": tried(llava, folder, {"one": CHATS["one"]}, pictures)}
    torch.save({"version": transformers.__version__, "folders": found}, out)


if __name__ == "__main__":
    main()
