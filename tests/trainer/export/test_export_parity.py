"""One export, several readers: our model, and the same folder in transformers 5, in 4.57, and in both pipelines."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.readers.by_transformers import BATCH, CHATS
from tests.readers.table import BATCH as BATCH_OF_TWO
from tests.readers.table import (
    FIVE,
    FOUR,
    IMAGES,
    LOGITS,
    NAMES,
    PIPELINE_FIVE,
    PIPELINE_FOUR,
    PROMPTS,
    SIZE,
    TEXT,
    TURNS,
    cells,
)
from tests.support.exported import (
    COMPAT4,
    Case,
    Ours,
    Reader,
    check_bos,
    expanded,
    grid_case,
    make_model,
    make_pictures,
    ours,
)
from trainer.export import run as export
from trainer.export.run import ExportSettings, export_model
from trainer.model.tensor_files import write_weights

pytestmark = pytest.mark.processes
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA3: dict[str, Any] = {
    "query_pre_attn_scalar": 8,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 70.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    },
}
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "short_factor": [1.5] * 4,
        "long_factor": [3.0] * 4,
    },
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 64,
}
CASES: dict[str, Case] = {
    "clip-llama": grid_case("clip", "llama"),
    "clip-mistral padded": grid_case("clip", "mistral")._replace(padded=True),
    "siglip-gemma": grid_case("siglip", "gemma"),
    "siglip-qwen2 padded": grid_case("siglip", "qwen2")._replace(padded=True, max_shard_size="20KB"),
    "dinov2-llama": grid_case("dinov2", "llama")._replace(settings={"rope_parameters": LLAMA3}),
    "dinov2-phi3 padded": grid_case("dinov2", "phi3")._replace(padded=True),
}
"""Each tower and each LLM, each tower with bars and without; what a tower gives an LLM is the same of all LLMs."""
WHOLE = [*CASES]
"""Of these all chats are looked at, and by the pipeline, too."""
CASES["tied"] = Case("clip", "llama", {"tie_word_embeddings": True})
CASES["untied gemma"] = Case("clip", "gemma", {"tie_word_embeddings": False})
CASES["longrope"] = Case("siglip", "phi3", LONGROPE)
CASES["llama 3.2"] = Case("clip", "llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True})
CASES["qwen3"] = Case("siglip", "qwen3", {"head_dim": 16, "tie_word_embeddings": True})
CASES["smollm3"] = Case("clip", "smollm3", {"no_rope_layers": [1, 0], "tie_word_embeddings": True})
CASES["gemma 3"] = Case("siglip", "gemma3_text", GEMMA3)
CASES["pythia"] = Case("clip", "gpt_neox", {"rope_parameters": {"rope_theta": 70.0, "partial_rotary_factor": 0.5}})
LLM_ALONE = [name for name in CASES if name not in ("dinov2-llama", "untied gemma")]
GEMMAS = [name for name, case in CASES.items() if case.llm == "gemma"]
NAMES_5 = ["clip-llama", "siglip-gemma", "dinov2-llama", "longrope"]
"""Of these transformers 5 reads an export under its own names, too."""
REFUSED = {
    ("siglip-gemma/model", 4): "not for transformers 4; export it with --rescale-projector for that",
    ("siglip-gemma/rescaled", 5): "for transformers before 5.4; export it without --rescale-projector for others",
    ("clip-llama/names-5", 4): "not for transformers 4; export it with --names 4 for that",
    ("clip-llama/llm-names-5", 4): "not for transformers 4; export it with --names 4 for that",
}
"""Exports, and readers that would misread them."""


class Answers(NamedTuple):
    ours: dict[str, Ours]
    by: dict[int, dict[str, Any]]
    """By version, and by case and export, what transformers says."""

    def exports(self, name: str, reader: str) -> dict[str, Any]:
        """What a reader says of those of a case that are for it: the default one, for most."""
        version = 5 if reader.endswith(FIVE) else 4
        folders = ["rescaled" if version == 4 and name in GEMMAS else "model"]
        folders += ["names-5"] if version == 5 and name in NAMES_5 else []
        return {folder: self.by[version][f"{name}/{folder}"] for folder in folders}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What each reader says of each case."""
    if not COMPAT4.is_dir():
        pytest.skip("transformers 4 is not there: `make .venv` installs it")
    root = tmp_path_factory.mktemp("parity")
    make_pictures(root)
    asked: dict[int, set[str]] = {version: {name for name, by in REFUSED if by == version} for version in (5, 4)}
    for name, case in CASES.items():
        model = make_model(root / name, case)
        kinds: dict[str, dict[str, Any]] = {"model": {}}
        kinds |= {"llm": {"kind": "llm"}} if name in LLM_ALONE else {}
        kinds |= {"rescaled": {"rescale_projector": True}} if name in GEMMAS else {}
        kinds |= {"names-5": {"names": 5}, "llm-names-5": {"names": 5, "kind": "llm"}} if name in NAMES_5 else {}
        for out, settings in kinds.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(export, "write_weights", partial(write_weights, max_shard_size=case.max_shard_size))
                export_model(ExportSettings.of(source=model, out=root / name / out, **settings))
            files = list((root / name / out).glob("*.safetensors"))
            assert (len(files) > 3) is (case.max_shard_size == "20KB")
        asked[5] |= {f"{name}/{out}" for out in kinds if out != "rescaled"}
        asked[4] |= {f"{name}/{out}" for out in kinds if "5" not in out and (out != "model" or name not in GEMMAS)}
    chats = {name: CHATS if name in WHOLE else {"one": CHATS["one"]} for name in CASES}
    with begin(root, sorted(asked[5]), 5) as five, begin(root, sorted(asked[4]), 4) as four:
        mine = {name: ours(root / name / "made", case.template, chats[name]) for name, case in CASES.items()}
        five.wait()
        four.wait()
    by: dict[int, dict[str, Any]] = {}
    for version in (5, 4):
        said = torch.load(root / f"{version}.pt")
        assert said["version"].startswith(f"{version}.")
        by[version] = {str(Path(folder).relative_to(root)): found for folder, found in said["folders"].items()}
    return Answers(mine, by)


def begin(root: Path, names: list[str], version: int) -> Reader:
    """Begins a transformers that reads these exports."""
    whole = [root / name for name in names if name.split("/")[0] in WHOLE]
    others = [root / name for name in names if name.split("/")[0] not in WHOLE]
    path = COMPAT4 if version == 4 else None
    return Reader("by_transformers.py", root, root / f"{version}.pt", *whole, "--", *others, cwd=root, path=path)


Found = dict[str, Any]
"""What a reader says of an export."""


def names(_: Ours, found: Found) -> None:
    assert found["report"] == {}
    assert found["dtype"] == "torch.float32"


def logits(mine: Ours, found: Found) -> None:
    assert mine.chats["one"].logits.std() > 0.3, "random, but not all the same"
    near(mine, found, "one")


def near(mine: Ours, found: Found, chat: str) -> None:
    """The same pixels and logits of a chat."""
    torch.testing.assert_close(found["chats"][chat]["pixels"], mine.chats[chat].pixels, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["chats"][chat]["logits"], mine.chats[chat].logits, atol=1e-4, rtol=0)


def prompts(mine: Ours, found: Found) -> None:
    """By the processor and by the tokenizer, as training has them."""
    for chat, asked in mine.chats.items():
        told = found["chats"][chat]
        count = asked.ids.count(mine.image) // told["tokenizer ids"].count(mine.image)
        assert told["ids"] == asked.ids, chat
        assert expanded(told["tokenizer ids"], mine.image, count) == asked.ids, chat
        assert told["texts"] == 1, "of a string and of a list"
        check_bos(told["ids"], mine.bos)


def greedy(mine: Ours, found: Found) -> None:
    assert found["chats"]["one"]["made"] == mine.chats["one"].made


def batch(mine: Ours, found: Found) -> None:
    """Beside each alone, without a cache."""
    alone = [mine.chats[chat] for chat in BATCH]
    lengths = [len(one.ids) for one in alone]
    assert found["batch"]["lengths"] == lengths
    assert lengths[0] != lengths[1]
    last = torch.stack([one.logits[-1] for one in alone])
    torch.testing.assert_close(found["batch"]["logits"], last, atol=1e-4, rtol=0)
    assert found["batch"]["made"] == [one.made for one in alone]


def of_chat(chat: str) -> Callable[[Ours, Found], None]:
    def check(mine: Ours, found: Found) -> None:
        near(mine, found, chat)
        assert found["chats"][chat]["made"] == mine.chats[chat].made

    return check


def piped_prompts(mine: Ours, found: Found) -> None:
    for chat, asked in mine.chats.items():
        assert found[chat]["ids"][: len(asked.ids)] == asked.ids, chat
        check_bos(found[chat]["ids"][: len(asked.ids)], mine.bos)


def piped(chat: str) -> Callable[[Ours, Found], None]:
    def check(mine: Ours, found: Found) -> None:
        asked = mine.chats[chat]
        assert found[chat]["ids"] == [*asked.ids, *asked.made]
        assert found[chat]["text"].strip() == asked.text.strip()

    return check


CHATS_OF = {SIZE: "another size", IMAGES: "two images", TURNS: "two turns"}
READ: dict[str, Callable[[Ours, Found], None]] = {
    NAMES: names, LOGITS: logits, PROMPTS: prompts, TEXT: greedy, BATCH_OF_TWO: batch,
    **{check: of_chat(chat) for check, chat in CHATS_OF.items()},
}  # fmt: skip
PIPED = {PROMPTS: piped_prompts, TEXT: piped("one"), **{check: piped(chat) for check, chat in CHATS_OF.items()}}


@pytest.mark.parametrize(("reader", "check"), cells(FIVE, FOUR, PIPELINE_FIVE, PIPELINE_FOUR))
def test_a_reader(reader: str, check: str, told: Answers) -> None:
    """A cell of docs/readers.md, of every case."""
    by_pipeline = reader in (PIPELINE_FIVE, PIPELINE_FOUR)
    looked_at = PIPED[check] if by_pipeline else READ[check]
    for name in WHOLE if by_pipeline or check in (BATCH_OF_TWO, *CHATS_OF) else CASES:
        for folder, theirs in told.exports(name, reader).items():
            found = theirs["pipeline" if by_pipeline else "model"]
            assert "refused" not in found, (name, folder, found)
            try:
                looked_at(told.ours[name], found)
            except AssertionError as error:
                raise AssertionError(f"{name}, {folder}: {error}") from error


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2"])
def test_bars_are_seen(vision: str, told: Answers) -> None:
    """Of one photo; that logits are those of the pixels is a cell above."""
    photos = {
        CASES[name].padded: told.by[5][f"{name}/model"]["model"]["chats"]["one"]["pixels"]
        for name in WHOLE
        if CASES[name].vision == vision
    }
    assert (photos[True] - photos[False]).abs().max() > 0.1


@pytest.mark.parametrize("name", LLM_ALONE)
def test_the_same_llm(name: str, told: Answers) -> None:
    mine = told.ours[name]
    exports = [told.by[version][f"{name}/llm"] for version in (5, 4)]
    exports += [told.by[5][f"{name}/llm-names-5"]] if name in NAMES_5 else []
    for theirs in (each["model"] for each in exports):
        assert theirs["report"] == {}
        assert theirs["ids"] == mine.words
        torch.testing.assert_close(theirs["logits"], mine.word_logits, atol=1e-4, rtol=0)
        family = CASES[name].llm.removesuffix("_text").replace("_", "")
        assert theirs["type"].lower() == f"{family}forcausallm"


def test_templates_and_ends(told: Answers) -> None:
    """The eos is what ends a turn; ChatML has no marks of its own, and its eos is not the tokenizer's."""
    ends = {"chatml": "<|im_end|>", "vicuna": "</s>", "mistral": "</s>", "gemma": "<end_of_turn>"}
    for name, case in CASES.items():
        for reader in (FIVE, FOUR):
            for theirs in told.exports(name, reader).values():
                assert theirs["model"]["answers"].strip() == f"a red patch{ends[case.speech]}"
                assert theirs["model"]["eos"] == ends[case.speech]


@pytest.mark.parametrize(("export", "version"), REFUSED)
def test_a_reader_stops_at_what_it_would_misread(export: str, version: int, told: Answers) -> None:
    for read in told.by[version][export].values():
        assert REFUSED[export, version] in read["refused"]
