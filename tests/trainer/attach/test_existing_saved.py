"""The folder of an existing model after training: what did not train keeps its bytes, and all else its form."""

import copy
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from sea_pipeline.core.errors import UserError
from tests.support.other_formats import OTHER_FORMATS
from tests.support.refused import refused
from tests.support.run_values import tensors
from tests.trainer.attach.existing import KINDS
from tests.trainer.attach.families import MAKERS, Tiny, llava, text_settings, tiny
from trainer.attach.folder import load_existing, open_existing_folder, save_existing
from trainer.model.parts import quiet
from trainer.recipes.recipe import Recipe

PARTS: dict[str, dict[str, Any]] = {
    "projector": {"learning_rates": {"projector": 1e-3}},
    "all": {"learning_rates": {"projector": 1e-3, "llm": 1e-3, "vision": 1e-3}},
    "lora": {"learning_rates": {"projector": None, "llm": 1e-3}, "lora": {"rank": 4, "alpha": 12, "dropout": 0}},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def folder_of(made: Tiny, out: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = copy.deepcopy(made.model)
    with quiet():
        (model.half() if dtype == torch.float16 else model).save_pretrained(out)
        made.processor.save_pretrained(out)
    return out


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """As transformers loads them, in float32, by the model's names."""
    with quiet():
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return dict(model.state_dict())


def saved(start: Path, out: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Loads a folder with frozen parts in bfloat16, moves what trains, saves it, and checks it against the start's.

    Returns the weights that it should have, before they are rounded as the folder's are, and which trained.
    """
    rounded = {"frozen_dtype": "bfloat16", "training_arguments": {"bf16": True}}
    recipe = Recipe.model_validate({"model": {"attach": str(start)}} | rounded | changes)
    folder = open_existing_folder(start)
    model, wanted = load_existing(folder, recipe), weights_in(start)
    named = {name: value for name, value in model.state_dict(keep_vars=True).items() if value.requires_grad}
    trained = {name for name in named if ".lora_" not in name}
    assert all(torch.equal(named[name], wanted[name]) for name in trained), "read at full precision"
    for value in model.parameters():
        assert value.dtype == (torch.float32 if value.requires_grad else torch.bfloat16)
    torch.manual_seed(1)
    for value in model.parameters():
        if value.requires_grad:
            value.data += 0.1 * torch.randn_like(value)
    wanted |= {name: value.detach() for name, value in named.items()}
    for name in [name for name in named if ".lora_A." in name]:
        layer = name.partition(".lora_A.")[0]
        a, b = wanted.pop(name).double(), wanted.pop(name.replace("lora_A", "lora_B")).double()
        wanted[f"{layer}.weight"] = (wanted[f"{layer}.weight"].double() + 12 / 4 * b @ a).float()
        trained.add(f"{layer}.weight")
    save_existing(model, folder, out, lora=recipe.lora)
    return wanted, trained


def check(start: Path, out: Path, wanted: dict[str, torch.Tensor], trained: set[str]) -> set[str]:
    """Names, files and dtypes are the start's; what loads is what was wanted, to the rounding of the files.

    Returns the names in files of what changed.
    """
    before, after, loaded, first = tensors(start), tensors(out), weights_in(out), weights_in(start)
    assert before.keys() == after.keys()
    assert {path.name for path in out.iterdir()} == {path.name for path in start.iterdir()}
    assert {name: value.dtype for name, value in before.items()} == {name: each.dtype for name, each in after.items()}
    half = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
    loose = max(half[value.dtype] for value in after.values())
    for name, value in wanted.items():
        if name in trained:
            torch.testing.assert_close(
                loaded[name], value, rtol=loose, atol=1e-6, msg=lambda text, name=name: name + text
            )
        else:
            assert torch.equal(loaded[name], first[name]), name
    return {name for name in before if not torch.equal(before[name], after[name])}


# Each family's names once with all of them, and in turn with the projector or the LLM's adapters.
FAMILIES = [(name, "all") for name in MAKERS] + list(zip(MAKERS, ("projector", "lora") * 6, strict=True))
OTHERS = [*zip(KINDS, ("projector", "all", "lora", "all"), strict=True), ("gemma3", "lora"), ("llava", "all")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), FAMILIES)
def test_what_did_not_train_keeps_its_bytes(name: str, parts: str, tmp_path: Path) -> None:
    """With frozen parts in bfloat16; adapters are merged into the folder's weights, not into rounded ones."""
    dtype = torch.float16 if parts == "all" or name == "llava" else torch.float32
    start = folder_of(tiny(name), tmp_path / "start", dtype)
    wanted, trained = saved(start, tmp_path / "out", **PARTS[parts])
    changed = check(start, tmp_path / "out", wanted, trained)
    assert changed
    assert len(changed) <= len(trained)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), OTHERS)
def test_folders_with_other_names_of_tensors(name: str, parts: str, tmp_path: Path) -> None:
    """Those of the model itself, tied ones twice, in several files with their own dtypes."""
    start = folder_of(tiny(name), tmp_path / "start")
    (start / "model.safetensors").unlink()
    every = {name: value.clone() for name, value in tiny(name).model.state_dict().items()}
    shards = [dict(list(every.items())[part::3]) for part in range(3)]
    for number, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16)):
        save_file(
            {key: value.to(dtype) for key, value in shards[number].items()}, start / f"model-{number}.safetensors"
        )
    files = {key: f"model-{number}.safetensors" for number, shard in enumerate(shards) for key in shard}
    (start / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    wanted, trained = saved(start, tmp_path / "out", **PARTS[parts])
    assert check(start, tmp_path / "out", wanted, trained) <= trained
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (start / index).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS)
def test_a_mixture_of_experts_whose_file_has_them_one_by_one(parts: str, tmp_path: Path) -> None:
    sizes = text_settings(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    start = folder_of(llava(hf.Qwen3MoeConfig(**sizes)), tmp_path / "start", torch.float16)
    assert any("experts.3.up_proj" in name for name in tensors(start))
    changes = PARTS[parts]
    if "lora" in changes:  # peft warns of all-linear, which finds no layer among experts
        changes = changes | {"lora": changes["lora"] | {"targets": ["q_proj", "o_proj"]}}
    wanted, trained = saved(start, tmp_path / "out", **changes)
    changed = check(start, tmp_path / "out", wanted, trained)
    assert any("experts" in name for name in changed) == (parts == "all")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # transformers leaves templates open
def test_what_belongs_to_the_weights_is_copied_and_no_weights_of_the_start(tmp_path: Path) -> None:
    start = folder_of(tiny("llava"), tmp_path / "start")
    kept = ["model_card.md", "models.txt", "LICENSE", "vocab.json", "qwen.tiktoken", "consolidated.md", "pieces.model"]
    kept += ["pytorch_model.md", "additional_chat_templates/tool.jinja"]
    aside = ["consolidated.safetensors", "pytorch_model.bin", "additional_chat_templates/old.bin", ".DS_Store"]
    aside += ["MODEL.GGUF", *OTHER_FORMATS]
    for name in (*kept, *aside):
        (start / name).parent.mkdir(exist_ok=True)
        (start / name).write_text(name)
    (start / ".cache").mkdir()
    (start / "model.safetensors").chmod(0o444)
    saved(start, tmp_path / "out", **PARTS["projector"])
    assert all((tmp_path / "out" / name).read_text() == name for name in kept)
    assert not any((tmp_path / "out" / name).exists() for name in (*aside, ".cache"))


def test_weights_that_are_pickled_are_refused_and_the_advice_converts_them(tmp_path: Path) -> None:
    start = folder_of(tiny("llava"), tmp_path / "it's", torch.float16)
    before = load_file(start / "model.safetensors")
    (start / "model.safetensors").rename(start / "other.safetensors")
    with pytest.raises(UserError, match=r"expected its weights in model.safetensors or .*; found neither; copy"):
        open_existing_folder(start)
    torch.save(before, start / "pytorch_model.bin")
    (start / "other.safetensors").unlink()
    with pytest.raises(UserError, match=r"found pytorch_model.bin; give .*-safetensors, which") as found:
        open_existing_folder(start)
    command = str(found.value).partition("which this makes of it: ")[2]
    assert "\n" not in command
    python, option, code = shlex.split(command)
    was = contents(start)
    assert (python, option) == ("python", "-c")
    with quiet():
        exec(code, {})
    made = tmp_path / "it's-safetensors"
    after = load_file(made / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
    open_existing_folder(made)
    assert not list(made.glob("*.bin"))
    assert contents(start) == was, "nothing of the user's is touched"
    del before["language_model.model.norm.weight"]
    torch.save(before, start / "pytorch_model.bin")
    shutil.rmtree(made)
    with quiet(), pytest.raises(SystemExit, match=r"missing: .*norm.weight; copy the folder again"):
        exec(code, {})
    assert not made.exists()


def with_scale(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {f"{LAYER}.weight_scale": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})


def set_in_llm(**changes: int) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        said["text_config"] |= changes
        (folder / "config.json").write_text(json.dumps(said))

    return change


LAYER = "language_model.model.layers.0.mlp.up_proj"
UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "quantised": (with_scale, r"has no place for the weights \S*up_proj.weight_scale; give plain weights"),
    "other sizes": (set_in_llm(intermediate_size=7), "config.json says other shapes than the weights have"),
    "a layer more": (set_in_llm(num_hidden_layers=1), "expected weights of as many layers as config.json"),
    "not fetched": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"),
        "model.safetensors: is Git LFS's pointer to the file, not the file; run git lfs pull in",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("version https://git-lfs"),
        "tokenizer.json: is Git LFS's pointer to the file",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_weights_are_checked_as_those_of_init(kind: str, tmp_path: Path) -> None:
    start, (harm, said) = folder_of(tiny("llava"), tmp_path / "start"), UNFIT[kind]
    harm(start)
    recipe = Recipe.model_validate({"model": {"attach": str(start)}})
    with refused(match=said):
        load_existing(open_existing_folder(start), recipe)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (None, "found neither; copy the folder again"),
        ("{}", "expected weight_map, the files by the names of tensors; found none"),
        ('{"weight_map": {"a": 1}}', "expected weight_map"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "names model-1.safetensors; there is no"),
    ],
)
def test_folders_without_their_weights(index: str | None, said: str, tmp_path: Path) -> None:
    start = folder_of(tiny("llava"), tmp_path / "start")
    (start / "model.safetensors").unlink()
    if index is not None:
        (start / "model.safetensors.index.json").write_text(index)
    with refused(match=said):
        open_existing_folder(start)
