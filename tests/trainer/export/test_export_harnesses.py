"""Exports asked by lmms-eval and lm-eval, each through its own model class, beside our own model."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.readers.by_transformers import NEW_TOKENS, PAIRS, SAID
from tests.readers.table import BATCH, IMAGES, LM_EVAL, LMMS_EVAL, LOGITS, PROMPTS, SIZE, TEXT, TURNS, cells
from tests.support.exported import Ours, Reader, check_bos, grid_case, make_model, make_pictures, ours, trained
from tests.support.harness_files import HARNESSES, with_harnesses
from tests.support.paths import ROOT
from trainer.export.run import ExportSettings, export_model
from trainer.model.load import load_model, open_model_folder
from trainer.recipes.recipe import Recipe

pytestmark = [pytest.mark.processes, with_harnesses]
CASES = {llm: grid_case("clip", llm) for llm in ("llama", "mistral", "gemma", "qwen2")}
CHAT_OF = {TEXT: "one", SIZE: "another size", IMAGES: "two images", TURNS: "two turns"}


class Alone(NamedTuple):
    """What our model finds of texts without images."""

    ids: list[list[int]]
    chat: list[int]
    likely: list[float]
    said: list[str]
    bos: int | None


class Answers(NamedTuple):
    ours: dict[str, Ours]
    alone: dict[str, Alone]
    lmms: dict[str, Any]
    lm: dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    root = tmp_path_factory.mktemp("harnesses")
    make_pictures(root)
    for name, case in CASES.items():
        model = make_model(root / name, case)
        for kind in ("model", "llm"):
            export_model(ExportSettings.of(source=model, out=root / name / kind, kind=kind))
    lmms, lm = root / "lmms.pt", root / "lm.pt"
    folders = {kind: [root / name / kind for name in CASES] for kind in ("model", "llm")}
    with (
        Reader("by_lmms_eval.py", root, lmms, *folders["model"], cwd=root, path=f"{HARNESSES}:{ROOT}") as first,
        Reader("by_lm_eval.py", lm, *folders["llm"], cwd=root, path=HARNESSES) as second,
    ):
        mine = {name: ours(root / name / "made", case.template) for name, case in CASES.items()}
        alone = {name: asked_alone(root / name / "made", case.template, mine[name]) for name, case in CASES.items()}
        first.wait()
        second.wait()
    found = [{Path(folder).parent.name: said for folder, said in torch.load(file).items()} for file in (lmms, lm)]
    return Answers(mine, alone, *found)


@torch.no_grad()
def asked_alone(model: Path, template: str, mine: Ours) -> Alone:
    folder = open_model_folder(model)
    loaded = load_model(folder, Recipe(model=model)).eval()
    tokenizer = folder.processor.tokenizer
    ids, likely, said = [], [], []
    for context, more in PAIRS:
        begun, whole = tokenizer(context)["input_ids"], tokenizer(context + more)["input_ids"]
        ids.append(begun)
        scores = loaded(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        likely.append(sum(float(scores[place - 1, whole[place]]) for place in range(len(begun), len(whole))))
        made = list(begun)
        while len(made) < len(begun) + NEW_TOKENS and made[-1] not in mine.ends:
            made.append(int(loaded(input_ids=torch.tensor([made])).logits[0, -1].argmax()))
        said.append(tokenizer.decode(made[len(begun) :], skip_special_tokens=True))
    chat = trained(folder, template, {"alone": [(role, [], text) for role, text in SAID]})["alone"]
    return Alone(ids, chat, likely, said, mine.bos)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", [check for _, check in cells(LMMS_EVAL)])
def test_lmms_eval(name: str, check: str, told: Answers) -> None:
    mine, found = told.ours[name].chats, told.lmms[name]
    if check == PROMPTS:
        assert {chat: asked["ids"] for chat, asked in found.items()} == {chat: one.ids for chat, one in mine.items()}
        for asked in found.values():
            check_bos(asked["ids"], told.ours[name].bos)
    else:
        assert found[CHAT_OF[check]]["text"] == mine[CHAT_OF[check]].text


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", [check for _, check in cells(LM_EVAL)])
def test_lm_eval(name: str, check: str, told: Answers) -> None:
    mine, found = told.alone[name], told.lm[name]
    if check == LOGITS:
        assert found[1]["likely"] == pytest.approx(mine.likely, abs=1e-3)
    elif check == BATCH:
        assert found[2]["likely"] == pytest.approx(mine.likely, abs=1e-3)
        assert [text.strip() for text in found[2]["said"]] == [text.strip() for text in mine.said]
    elif check == TEXT:
        assert [text.strip() for text in found[1]["said"]] == [text.strip() for text in mine.said]
    elif check == PROMPTS:
        assert found["ids"] == mine.ids
    else:
        assert found["chat"] == mine.chat
    for ids in (*found["ids"], found["chat"]):
        check_bos(ids, mine.bos)
