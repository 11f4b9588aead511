"""What a reader told of an export beside our own answers, as the cells of a table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Answers = dict[str, Any]
Row = dict[str, str]
"""The cells of an export by their names; each begins with "ok", "refused" or "other"."""
Says = Callable[[str, list[int]], Answers]
"""A chat's name and its prompt's ids to what our model says next: `made`, and `first` by token."""
ARCHITECTURES = ("LlavaForConditionalGeneration", "TransformersMultiModalForCausalLM")
"""vLLM's own code, and its way to run transformers' classes."""
NEAR = 1e-4
"""Of float32 values that two programs compute; no activation here is above some tens."""


class Beside(NamedTuple):
    """Our answers, what a reader told, and our model, to ask it of the reader's own prompts."""

    ours: Answers
    told: Answers
    says: Says


Cell = Callable[[Beside], str]


def cells(ours: Answers, told: Answers, says: Says) -> Row:
    """Judges what a reader told of one export."""
    beside = Beside(ours, told, says)
    return {name: _filled(judge, beside) for name, judge in CELLS.items()}


def _filled(judge: Cell, beside: Beside) -> str:
    whole = beside.told.get("refused")
    return f"refused: {whole}" if whole is not None and judge is not _config else judge(beside)


def _config(beside: Beside) -> str:
    ours, told, _ = beside
    read = told.get("config", told)
    if "refused" in read:
        return f"refused: {read['refused']}"
    other = {"tied": read["tied"]} if read["tied"] != ours["tied"] else {}
    if ours["eos"] not in read["ends"]:
        other["ends"] = read["ends"]
    if read["architecture"] not in ARCHITECTURES:
        other["architecture"] = read["architecture"]
    theta = (read["rope"] or {}).get("rope_theta")
    if theta != ours["rope"]["rope_theta"]:
        other["rope_theta"] = theta
    if not str(read["llm"]).lower().startswith(ours["llm"]):
        other["llm"] = read["llm"]
    if read["dtype"] != ours["dtype"] and ours["dtype"] != "float32":  # vLLM computes float32 models in half
        other["dtype"] = read["dtype"]
    return f"other: {other}" if other else f"ok {read['llm']}, theta {theta:g}, {read['dtype']}"


def _names(beside: Beside) -> str:
    read = beside.told["names"]
    count = f"{read['parameters'] - len(read['differ'])} of {read['parameters']}"
    return f"other: {count}, {read['differ'][0]}" if read["differ"] else f"ok {count}"


def _pixels(beside: Beside) -> str:
    ours, told, _ = beside
    if "inputs" not in told:
        return "refused: nothing came to the tower"
    return _close(told["inputs"]["pixels"], ours["inputs"]["pixels"], "")


def _visual(beside: Beside) -> str:
    return _embedded(beside, visual=True)


def _words(beside: Beside) -> str:
    return _embedded(beside, visual=False)


def _embedded(beside: Beside, *, visual: bool) -> str:
    """What enters the LLM where images or words stand, with the ratio of its length to ours."""
    ours, told, _ = beside
    if "inputs" not in told:
        return "refused: nothing came to the LLM"
    mine, theirs = (np.array(one["inputs"]["embedded"]) for one in (ours, told))
    is_image = np.array(ours["chats"]["one"]["trained"]) == ours["image"]
    if len(theirs) < len(is_image):  # a BOS is missing
        mine, is_image = mine[len(is_image) - len(theirs) :], is_image[len(is_image) - len(theirs) :]
    mine, theirs = mine[is_image == visual], theirs[: len(is_image)][is_image == visual]
    ratio = np.linalg.norm(theirs) / np.linalg.norm(mine)
    return _close(theirs, mine, "" if abs(ratio - 1) < 1e-3 else f", {ratio:.3g} times as long")


def _close(theirs: Any, mine: Any, more: str) -> str:
    one, other = np.array(theirs), np.array(mine)
    if one.shape != other.shape:
        return f"other: shape {one.shape}, expected {other.shape}"
    far = float(np.abs(one - other).max())
    return f"{'ok' if far < NEAR else 'other:'} {far:.1e}{more}"


def _prompt(name: str) -> Cell:
    """Whether a chat's prompt is the one of transformers and the one that was trained."""

    def judge(beside: Beside) -> str:
        ours, told, _ = beside
        read, mine = told["chats"][name], ours["chats"][name]
        found = {"server": read.get("served"), "LLM.chat": read.get("ids")}
        for refused in (read, found["server"]):
            if isinstance(refused, dict) and "refused" in refused:
                return f"refused: {refused['refused']}"
        lines = []
        for path, ids in found.items():
            if ids is not None and ids != mine["trained"]:
                lines.append(f"{path} {_difference(ids, mine['trained'], ours['bos'])}")
        if mine["ids"] != mine["trained"]:
            lines.append(f"transformers {_difference(mine['ids'], mine['trained'], ours['bos'])}")
        if lines:
            return f"other: {'; '.join(lines)}"
        return f"ok {len(mine['trained'])} ids, {_leading(mine['trained'], ours['bos'])} BOS"

    return judge


def _difference(ids: list[int], wanted: list[int], bos: int | None) -> str:
    found, there = _leading(ids, bos), _leading(wanted, bos)
    if found != there and ids[found:] == wanted[there:]:
        return f"begins with {found} BOS, trained with {there}"
    first = next((place for place, pair in enumerate(zip(ids, wanted, strict=False)) if pair[0] != pair[1]), -1)
    return f"{len(ids)} ids, trained {len(wanted)}, the first other one at {first}"


def _leading(ids: list[int], bos: int | None) -> int:
    return next((place for place, token in enumerate(ids) if token != bos), len(ids))


def _said(*names: str) -> Cell:
    """Whether what is generated is what our model says of the same prompt."""

    def judge(beside: Beside) -> str:
        _, told, says = beside
        far, count = 0.0, 0
        for name in names:
            read = told["chats"][name]
            if "made" not in read:
                return f"refused: {read['refused']}"
            mine = says(name, read["ids"])
            if read["made"] != mine["made"][: len(read["made"])]:
                return f"other: {read['made']}, expected {mine['made']}"
            far = max(far, *(abs(value - mine["first"][int(token)]) for token, value in read["first"].items()))
            count += len(read["made"])
        return f"{'ok' if far < 10 * NEAR else 'other:'} {count} tokens, {far:.1e}"

    return judge


def _batch(beside: Beside) -> str:
    """Two chats of different lengths at once, beside each alone."""
    told = beside.told
    if "refused" in told["batch"]:
        return f"refused: {told['batch']['refused']}"
    alone = [told["chats"][name].get("made") for name in ("one", "turns")]
    together = [one["made"] for one in told["batch"]]
    return "ok" if together == alone else f"other: {together}, alone {alone}"


CELLS: dict[str, Cell] = {
    "configuration": _config,
    "names": _names,
    "pixels": _pixels,
    "visual tokens": _visual,
    "words": _words,
    "prompt, one image": _prompt("one"),
    "prompt, two turns": _prompt("turns"),
    "prompt, text first": _prompt("text first"),
    "prompt, no image": _prompt("no image"),
    "prompt, two images": _prompt("two images"),
    "first tokens": _said("one", "turns", "text first", "no image"),
    "batch of two": _batch,
    "other sizes": _said("tall", "large"),
    "two images": _said("two images"),
    "three images of two": _prompt("three images"),
}
