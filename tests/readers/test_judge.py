"""That the table of a reader says "ok" of one that reads rightly, and of no other."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.readers.by_vllm import compared
from tests.readers.cases import CASES, Ours, make_chats, make_model
from tests.readers.judge import CELLS, Answers, Beside, Says, cells

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rightly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, Answers, Says]:
    """Our answers, and what a reader tells that reads and says the same."""
    root = tmp_path_factory.mktemp("readers")
    chats = make_chats(root)
    ours = Ours(make_model(root, CASES["clip qwen2"]), chats)
    answers = ours.answers()
    told: dict[str, Any] = {"inputs": answers["inputs"], "chats": {}}
    told["config"] = {"architecture": "LlavaForConditionalGeneration", "llm": "Qwen2ForCausalLM", "dtype": "bfloat16"}
    told["config"] |= {"rope": answers["rope"], "tied": answers["tied"], "ends": [answers["eos"]]}
    told["names"] = {"parameters": 80, "differ": [], "unused": []}
    said = {name: ours.says(name, chat["trained"]) for name, chat in answers["chats"].items()}
    for name, (made, first) in {name: (one["made"], one["first"]) for name, one in said.items()}.items():
        best = torch.tensor(first).topk(5).indices.tolist()
        prompt = {"ids": answers["chats"][name]["trained"], "served": answers["chats"][name]["trained"]}
        told["chats"][name] = {**prompt, "made": made, "first": {str(token): first[token] for token in best}}
    told["batch"] = [told["chats"]["one"], told["chats"]["turns"]]
    return answers, told, lambda name, ids: said[name] if ids == answers["chats"][name]["trained"] else {}


def test_all_is_well(rightly: tuple[Answers, Answers, Says]) -> None:
    found = cells(*rightly)
    assert {name: cell for name, cell in found.items() if not cell.startswith("ok")} == {}
    assert found["first tokens"].startswith("ok 32 tokens")


def put(*path: Any, value: Any) -> Callable[[Answers], None]:
    def change(told: Answers) -> None:
        for key in path[:-1]:
            told = told[key]
        told[path[-1]] = value(told[path[-1]])

    return change


SPOILT = {
    "configuration": put("config", "rope", value=lambda rope: {**rope, "rope_theta": 10000.0}),
    "names": put("names", "differ", value=lambda _: ["lm_head.weight"]),
    "pixels": put("inputs", "pixels", value=lambda pixels: (torch.tensor(pixels) + 1e-3).tolist()),
    "visual tokens": put("inputs", "embedded", value=lambda rows: (torch.tensor(rows) * 5.66).tolist()),
    "words": put("inputs", "embedded", value=lambda rows: (torch.tensor(rows) / 5.66).tolist()),
    "prompt, one image": put("chats", "one", "served", value=lambda ids: ids[1:]),
    "prompt, two turns": put("chats", "turns", "ids", value=lambda ids: [5, *ids]),
    "prompt, two images": put("chats", "two images", "served", value=lambda ids: ids[:-1]),
    "first tokens": put("chats", "turns", "made", value=lambda made: [made[0] + 1, *made[1:]]),
    "batch of two": put("batch", value=lambda told: told[::-1]),
    "other sizes": put("chats", "tall", "first", value=lambda first: dict.fromkeys(first, -0.01)),
    "two images": put("chats", "two images", "made", value=lambda made: made[::-1]),
}


@pytest.mark.parametrize("cell", SPOILT)
def test_a_fault_is_seen(cell: str, rightly: tuple[Answers, Answers, Says]) -> None:
    answers, told, says = rightly
    told = copy.deepcopy(told)
    SPOILT[cell](told)
    assert CELLS[cell](Beside(answers, told, says)).startswith("other")


def test_what_is_refused_says_why(rightly: tuple[Answers, Answers, Says]) -> None:
    answers, told, says = rightly
    found = cells(answers, {"config": told["config"], "refused": "ValueError: no such tower"}, says)
    assert found.pop("configuration").startswith("ok")
    assert set(found.values()) == {"refused: ValueError: no such tower"}
    assert len(found) == len(CELLS) - 1
    one = copy.deepcopy(told)
    one["chats"]["tall"] = {"refused": "ValueError: too tall", "served": {"refused": "ValueError: too tall"}}
    assert cells(answers, one, says)["other sizes"] == "refused: ValueError: too tall"


def test_weights_are_compared_with_the_file(tmp_path: Path) -> None:
    """As vLLM has them: joined, in another precision, behind them rows that no file has."""
    parts = {f"a.{name}_proj.weight": torch.randn(4, 8).half() for name in ("q", "k", "v")}
    stored = {**parts, "embed.weight": torch.randn(5, 8).half(), "head.bias": torch.randn(3).half()}
    save_file(stored, tmp_path / "model.safetensors")
    model = torch.nn.Module()
    model.a, model.embed = torch.nn.Module(), torch.nn.Embedding(64, 8)
    model.a.qkv_proj = torch.nn.Linear(8, 12, bias=False)
    model.a.qkv_proj.weight.data = torch.cat([value.float() for value in parts.values()])
    model.embed.weight.data[:5] = stored["embed.weight"].float()
    assert compared(model, tmp_path) == {"parameters": 2, "differ": [], "unused": ["head.bias"]}
    model.a.qkv_proj.weight.data[9, 3] += 1e-3
    assert compared(model, tmp_path)["differ"] == ["a.qkv_proj.weight"]
