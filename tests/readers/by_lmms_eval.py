"""A program that has lmms-eval answer chats, started as `python -m trainer.lmms_eval` starts it.

`python by_lmms_eval.py PICTURES OUT FOLDER…` writes to OUT, by folder and chat, the ids that lmms-eval feeds and what
it takes for the answer. It asks through the class that `--model llava_hf` names.
"""

import sys
from pathlib import Path

import torch
from by_transformers import CHATS, NEW_TOKENS, PHOTO, WIDE
from PIL import Image

from trainer.lmms_eval import write_bos_once


def messages(chat, pictures):
    """As a task's `doc_to_messages` gives them."""
    return [
        {
            "role": role,
            "content": [{"type": "image", "url": pictures[image]} for image in images]
            + [{"type": "text", "text": text}],
        }
        for role, images, text in chat
    ]


def main():
    torch.set_num_threads(1)
    write_bos_once()
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    images, out, *folders = sys.argv[1:]
    pictures = {name: Image.open(Path(images, name)) for name in (PHOTO, WIDE)}
    told = {}
    for folder in folders:
        model = get_model("llava_hf")(pretrained=folder, device="cpu", device_map="cpu")
        model.task_dict = {"chats": {"test": list(CHATS.values())}}
        fed, generate = [], model.model.generate

        def kept(*given, fed=fed, generate=generate, **named):
            fed.append(named["input_ids"][0].tolist())
            return generate(*given, **named)

        model.model.generate = kept
        told[folder] = {}
        for number, name in enumerate(CHATS):
            asked = ("", lambda chat: messages(chat, pictures), {"max_new_tokens": NEW_TOKENS}, number, "chats", "test")
            asking = Instance("generate_until", asked, 0, {"task": "chats", "doc_id": number, "repeats": 1})
            (said,) = model.generate_until([asking])
            told[folder][name] = {"ids": fed.pop(), "text": said.text}
    torch.save(told, out)


if __name__ == "__main__":
    main()
