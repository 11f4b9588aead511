"""Models of many kinds and their exports, the chats that readers are given, and what our own code makes of these."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from uuid import uuid4

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig

from tests.hub_forms import write_form
from tests.readers.by_transformers import ANSWER, CHATS, NEW_TOKENS, PHOTO, WIDE, WORDS
from tests.support.initialised import edit
from tests.support.paths import ROOT
from tests.support.sentence_piece import vicuna_like
from tests.support.tiny_models import CHATML, tiny_llm, tiny_vision
from trainer.data.conversations import conversation_rows
from trainer.model.aspect_ratio import write_image_processor
from trainer.model.assemble import init_model
from trainer.model.load import ModelFolder, load_model, open_model_folder
from trainer.model.parts import load_tokenizer
from trainer.model.sentence_piece import rebuilt
from trainer.recipes.recipe import Recipe

READERS = ROOT / "tests" / "readers"
"""Programs that read exports."""
COMPAT4 = Path(sys.prefix) / "compat4"
"""Where `make .venv` puts transformers 4.57.6."""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% set role = message['role'].replace('assistant', 'model') %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SMALL_THETA = {"rope_parameters": {"rope_theta": 70.0, "rope_type": "default"}}
"""Far from the 10,000 that a reader takes who does not find it."""


class Case(NamedTuple):
    vision: str
    llm: str
    settings: dict[str, Any]
    padded: bool = False
    speech: Literal["chatml", "vicuna", "mistral", "gemma"] = "chatml"
    """The tokenizer and its template: byte-level without BOS, or SentencePiece with one."""
    max_shard_size: str = "4GB"

    @property
    def template(self) -> str:
        """Of training."""
        return "vicuna_v1" if self.speech == "vicuna" else "own"


SPEECH: dict[str, Any] = {"llama": "vicuna", "mistral": "mistral", "gemma": "gemma"}


Chats = dict[str, list[tuple[str, list[str], str]]]


def grid_case(vision: str, llm: str) -> Case:
    """An LLM with a tokenizer of the kind that its authors gave it."""
    return Case(vision, llm, {}, speech=SPEECH.get(llm, "chatml"))


def make_model(root: Path, case: Case) -> Path:
    """A LLaVA folder, by `init`."""
    parts = root / "parts"
    vision = tiny_vision(parts / "vision", case.vision, initializer_range=0.3)
    model = init_model(str(vision), str(_llm(parts / "llm", case)), root / "made")
    if case.padded:  # as a stage leaves it
        write_image_processor(open_model_folder(model, "pad").processor.image_processor, model)
    return model


def _llm(path: Path, case: Case) -> Path:
    if case.speech == "gemma":
        form = write_form(path, "google/gemma-2b")
        edit(form / "config.json", rope_theta=70.0)
        edit(form / "tokenizer_config.json", chat_template=GEMMA)
        return form
    settings = {"initializer_range": 0.3, **SMALL_THETA, **case.settings}
    if case.speech == "chatml":
        return tiny_llm(path, case.llm, template=CHATML, **settings)
    pieces = vicuna_like(path.parent / "tokenizer").get_piece_size()
    tiny_llm(path, case.llm, vocab_size=pieces, **settings)
    for name in ("tokenizer.json", "chat_template.jinja"):
        (path / name).unlink(missing_ok=True)
    if case.llm in ("llama", "mistral"):
        for name in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(path.parent / "tokenizer" / name, path)
    else:  # of another class, which does not read that file
        tokenizer = load_tokenizer(str(path.parent / "tokenizer"))
        rebuilt(tokenizer, tokenizer.backend_tokenizer).save_pretrained(path)
    if case.speech == "mistral":
        edit(path / "tokenizer_config.json", chat_template=MISTRAL)
    return path


def make_pictures(root: Path) -> None:
    noise = np.random.default_rng(0)
    for name, shape in ((PHOTO, (50, 70, 3)), (WIDE, (24, 90, 3))):
        Image.fromarray(noise.integers(0, 256, shape, np.uint8)).save(root / name)


class Reader:
    """A program that reads exports, begun with other packages before ours."""

    def __init__(self, program: str, *arguments: object, cwd: Path, path: Path | str | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {} if path is None else {"PYTHONPATH": str(path)}
        environment |= {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-W", "ignore", str(READERS / program), *map(str, arguments)]
        self._said = cwd / f"{uuid4()}.txt"
        with self._said.open("w") as said:
            self._begun = subprocess.Popen(command, cwd=cwd, env=environment, stdout=said, stderr=said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._begun.kill()
        self._begun.wait()

    def wait(self) -> None:
        assert self._begun.wait() == 0, self._said.read_text()[-4000:]


# Our own answers


class Asked(NamedTuple):
    """A chat as training reads it, and what our model says next."""

    ids: list[int]
    """Up to the answer, images expanded, one BOS in front if the tokenizer adds one."""
    pixels: torch.Tensor
    logits: torch.Tensor
    """(tokens, vocabulary)."""
    made: list[int]
    text: str


class Ours(NamedTuple):
    chats: dict[str, Asked]
    words: list[int]
    word_logits: torch.Tensor
    bos: int | None
    """That the tokenizer adds by itself."""
    image: int
    ends: list[int]


@torch.no_grad()
def ours(model: Path, template: str, chats: Chats = CHATS) -> Ours:
    """Asks our own model, by our own loader, in the ids that are trained.

    Args:
        model: as `make_model` made it, the pictures two folders above.
        template: of training.
        chats: some of `CHATS`.
    """
    folder = open_model_folder(model)
    loaded = load_model(folder, Recipe(model=model)).eval()
    tokenizer: Any = folder.processor.tokenizer
    ends = GenerationConfig.from_pretrained(model).eos_token_id
    asked = {}
    for name, ids in trained(folder, template, chats).items():
        pictures = [Image.open(model.parent.parent / image) for turn in CHATS[name] for image in turn[1]]
        pixels = folder.processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        given, made = torch.tensor([ids]), []
        logits = loaded(input_ids=given, pixel_values=pixels).logits[0]
        last = logits[-1]
        while len(made) < NEW_TOKENS and (not made or made[-1] not in ends):  # without a cache, as nobody generates
            made.append(int(last.argmax()))
            given = torch.cat([given, torch.tensor([made[-1:]])], 1)
            last = loaded(input_ids=given, pixel_values=pixels).logits[0, -1]
        text = tokenizer.decode(made, skip_special_tokens=True)
        asked[name] = Asked(ids, pixels.flatten()[::97], logits, made, text)
    words = tokenizer(WORDS)["input_ids"]
    adds = tokenizer.bos_token_id is not None and words[0] == tokenizer.bos_token_id
    word_logits = loaded(input_ids=torch.tensor([words])).logits[0]
    image = folder.processor.image_token_id
    return Ours(asked, words, word_logits, tokenizer.bos_token_id if adds else None, image, ends)


def trained(folder: ModelFolder, template: Any, chats: Chats = CHATS) -> dict[str, list[int]]:
    """By chat the ids that training gives it, up to an answer that is put behind it; images expanded."""
    rows = []
    for chat in chats.values():
        turns = [
            {"from": "human" if role == "user" else "gpt", "value": "<image>\n" * len(images) + text}
            for role, images, text in chat
        ]
        images = [image for _, images, _ in chat for image in images]
        rows.append({"image": images, "conversations": [*turns, {"from": "gpt", "value": ANSWER}]})
    data = folder.path.parent / "rows.json"
    data.write_text(json.dumps(rows))
    count = folder.grid[0] * folder.grid[1]
    found = conversation_rows(data, folder.processor.tokenizer, template=template, image_tokens=count)
    begun = {}
    for name, row in zip(chats, found, strict=True):
        assert row["refused"] is None, row["refused"]
        marks = list(row["trained"])
        start = len(marks) - 1 - marks[::-1].index(True)
        while marks[start - 1]:
            start -= 1
        begun[name] = expanded([int(one) for one in row["input_ids"][:start]], folder.processor.image_token_id, count)
    return begun


def check_bos(ids: list[int], bos: int | None) -> None:
    """One in front if the tokenizer adds one, and no other."""
    if bos is not None:
        assert (ids[0], ids.count(bos)) == (bos, 1)


def expanded(ids: list[int], image: int, count: int) -> list[int]:
    return [one for token in ids for one in [token] * (count if token == image else 1)]
