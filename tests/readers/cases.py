"""Exports of tiny models in the hub's forms, chats about pictures, and what our own code makes of both."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from tests.hub_forms import LLMS, TOWERS
from tests.hub_forms.files import random_weights, write_json, write_weights
from tests.hub_forms.llama import decoder_shapes
from tests.support.tiny_models import CHATML, tiny_llm, tiny_vision
from trainer.data.row_tokens import TokensSettings, row_tokens
from trainer.export.run import ExportSettings, export_model
from trainer.model.assemble import init_model
from trainer.model.load import load_model, open_model_folder
from trainer.recipes.recipe import Recipe

HEADS, SHARED, HEAD = 2, 1, 32
"""Of the LLMs' attention: vLLM's kernels for CPUs take no head below 32."""
NEW = 8
"""Tokens that are generated."""
QUESTIONS = ("What do you see?", "Which colour is the corner?")
ANSWER = "a red patch"
PICTURES = {"wide": (70, 50), "tall": (40, 90), "large": (300, 220)}
"""Sides in pixels: none is the tower's."""


Chats = dict[str, list[dict[str, Any]]]
"""By name, messages."""


class Case(NamedTuple):
    vision: str
    llm: str
    projector: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"


LLM_FORMS = {
    "llama": "lmsys/vicuna-7b-v1.5",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "gemma": "google/gemma-2b",
    "llama3": "meta-llama/Meta-Llama-3-8B-Instruct",
}
TOWER_FORMS = {"clip": "openai/clip-vit-large-patch14-336", "siglip": "google/siglip-so400m-patch14-384"}
CASES = {f"{tower} {llm}": Case(tower, llm) for tower in TOWER_FORMS for llm in (*LLM_FORMS, "qwen2")}
CASES |= {
    "clip qwen2 tied": Case("clip", "qwen2-tied"),
    "clip llama, linear projector": Case("clip", "llama", "linear"),
    "dinov2 llama": Case("dinov2", "llama"),
    "s2 llama": Case("s2", "llama"),
    "packaged llama": Case("packaged", "llama"),
}


def make_model(root: Path, case: Case) -> Path:
    """A LLaVA folder, by `init`."""
    llm = _llm(root / "parts", case.llm)
    return init_model(_tower(root / "parts", case.vision), str(llm), root / "model", projector=case.projector)


def export(model: Path, out: Path, settings: dict[str, Any]) -> str | None:
    """Exports it; gives the line by which it is refused."""
    try:
        export_model(ExportSettings.of(source=model, out=out, **settings))
    except ValueError as error:
        return str(error)
    return None


def _tower(root: Path, name: str) -> str:
    if name == "packaged":
        return name
    if name == "s2":
        return f"s2:{tiny_vision(root / 'vision', 'clip', initializer_range=0.3)}"
    if name == "dinov2":
        return str(tiny_vision(root / "vision", name, initializer_range=0.3))
    return str(TOWERS[TOWER_FORMS[name]](root / "vision"))


def _llm(root: Path, name: str) -> Path:
    if name.startswith("qwen2"):
        sizes = {"hidden_size": HEADS * HEAD, "num_attention_heads": HEADS, "num_key_value_heads": SHARED}
        rope = {"rope_parameters": {"rope_theta": 70.0, "rope_type": "default"}}
        tied = {"tie_word_embeddings": name.endswith("tied"), "initializer_range": 0.3}
        return tiny_llm(root / "llm", "qwen2", template=CHATML, **sizes, **rope, **tied)
    return _widened(LLMS[LLM_FORMS[name]](root / "llm"))


def _widened(folder: Path) -> Path:
    """A folder of the hub's form with wider heads, and its weights drawn anew in its precision."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": SHARED, "head_dim": HEAD, "rope_theta": 70.0}
    write_json(folder / "config.json", config)
    for file in [*folder.glob("*.bin*"), *folder.glob("*.safetensors*")]:
        file.unlink()
    gemma = config["model_type"] == "gemma"
    shapes = decoder_shapes(config["vocab_size"], heads=HEADS, shared=SHARED, head=HEAD, tied=gemma)
    weights = random_weights(shapes, getattr(torch, config["torch_dtype"]), norm=0.0 if gemma else 1.0)
    write_weights(folder, weights)
    return folder


# Chats


def make_chats(root: Path) -> Chats:
    """By name, messages as chat templates take them; an image has the `path` of its picture."""
    random = np.random.default_rng(0)
    paths = {name: root / f"{name}.png" for name in PICTURES}
    for name, (width, height) in PICTURES.items():
        coarse = random.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(paths[name])
    first, second = QUESTIONS
    one = [_user(first, paths["wide"])]
    return {
        "one": one,
        "turns": [*one, _said("assistant", ANSWER), _user(second)],
        "tall": [_user(first, paths["tall"])],
        "large": [_user(first, paths["large"])],
        "two images": [_user(first, paths["wide"], paths["tall"])],
        "text first": [{"role": "user", "content": _user(first, paths["wide"])["content"][::-1]}],
        "no image": [_user(first)],
        "three images": [_user(first, *paths.values())],
    }


def _user(text: str, *images: Path) -> dict[str, Any]:
    message = _said("user", text)
    return {**message, "content": [*({"type": "image", "path": str(path)} for path in images), *message["content"]]}


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


# Our own answers


class Ours:
    """What transformers 5 and our loader make of the chats: prompts, pixels, what enters the LLM, what it says."""

    def __init__(self, model: Path, chats: Chats) -> None:
        folder = open_model_folder(model)
        self._path, self._chats = model, chats
        self._loaded: Any = load_model(folder, Recipe(model=model)).eval()
        self._processor: Any = folder.processor
        self._config: Any = folder.config

    @torch.no_grad()
    def answers(self) -> dict[str, Any]:
        """By chat the prompt's ids, by `apply_chat_template(tokenize=True)` and as they are trained; settings."""
        text = self._config.text_config
        told: dict[str, Any] = {"chats": {}, "llm": text.model_type, "rope": text.rope_parameters}
        tokenizer = self._processor.tokenizer
        told |= {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "image": self._processor.image_token_id}
        told |= {"dtype": str(self._config.dtype).removeprefix("torch."), "tied": bool(text.tie_word_embeddings)}
        for name in self._chats:
            ids = self._given(name)["input_ids"][0].tolist()
            told["chats"][name] = {"ids": ids, "trained": trained(self._path, self._chats[name])}
        given = self._given("one") | {"input_ids": torch.tensor([told["chats"]["one"]["trained"]])}
        return told | {"inputs": {"pixels": given["pixel_values"].tolist(), "embedded": self._entering(given)}}

    @torch.no_grad()
    def says(self, name: str, prompt: list[int]) -> dict[str, Any]:
        """The best next tokens of a chat's prompt, without a cache, and the first one's logarithmic probabilities."""
        given = self._given(name) | {"input_ids": torch.tensor([prompt])}
        logits = [self._loaded(**given).logits[0, -1]]
        while len(logits) <= NEW:
            given["input_ids"] = torch.cat([given["input_ids"], logits[-1].argmax().view(1, 1)], 1)
            logits.append(self._loaded(**given).logits[0, -1])
        made = [int(one.argmax()) for one in logits[:-1]]
        return {"made": made, "first": logits[0].log_softmax(-1).tolist()}

    def _given(self, name: str) -> dict[str, torch.Tensor]:
        def opened(part: dict[str, Any]) -> dict[str, Any]:
            return {"type": "image", "image": Image.open(part["path"])} if part["type"] == "image" else part

        chat = [{**message, "content": [*map(opened, message["content"])]} for message in self._chats[name]]
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        given = self._processor.apply_chat_template(chat, **options)
        return {key: given[key] for key in ("input_ids", "pixel_values") if key in given}

    def _entering(self, given: dict[str, torch.Tensor]) -> list[list[float]]:
        """(tokens, width): what enters the LLM's layers."""
        seen: list[torch.Tensor] = []
        layer = self._loaded.model.language_model.layers[0]

        def keep(_: object, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
            seen.append(named.get("hidden_states", *inputs))

        handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
        self._loaded(**given)
        handle.remove()
        found: list[list[float]] = seen[0][0].tolist()
        return found


def trained(model: Path, chat: list[dict[str, Any]]) -> list[int]:
    """The ids that a row of this conversation has in training, images expanded, up to its last answer."""
    turns = []
    images: list[str] = []
    for message in chat:
        text = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        here = [part["path"] for part in message["content"] if part["type"] == "image"]
        images += here
        turns.append({"from": {"user": "human"}.get(message["role"], "gpt"), "value": "<image>\n" * len(here) + text})
    turns.append({"from": "gpt", "value": ANSWER})
    data = model.parent / "row.json"
    data.write_text(json.dumps([{"id": "row", "image": images, "conversations": turns}]))
    (row,) = row_tokens(TokensSettings(model=str(model), data=data))
    assert row.refused is None, row.refused
    image = open_model_folder(model).processor.image_token_id
    ids = [token for one in row.ids for token in ([image] * one[1] if isinstance(one, tuple) else [one])]
    return ids[: row.trained[-1][0]]
