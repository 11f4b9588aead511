"""What `export` writes beside the weights, what it refuses, and what it leaves behind when it is stopped."""

import json
import os
import signal
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tests.support.memory import READY, measured
from tests.support.programs import Begin
from tests.support.run_values import tensors, written
from tests.support.tiny_models import CHATML, tiny_llm, tiny_model, tiny_vision
from trainer.export import run as export_run
from trainer.export import transformers4
from trainer.export.files import spell
from trainer.export.run import ExportSettings, export_model
from trainer.model.assemble import init_model
from trainer.model.sentence_piece import same_tokenizer
from trainer.model.tensor_files import Entry, canonical, read_weights, write_weights
from trainer.training.run import TrainRun


@pytest.mark.slow
def test_the_whole_model(run: TrainRun, tmp_path: Path) -> None:
    out = written(run.out, tmp_path / "out")
    before, after = tensors(run.model), tensors(out)
    assert {canonical(name) for name in after} == before.keys()
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in after  # as transformers 4 and vLLM have it
    assert all(torch.equal(value, before[canonical(name)]) for name, value in after.items())
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    names |= {"processor_config.json", "preprocessor_config.json", "chat_template.jinja", "alignment.json"}
    names.add("model.safetensors")
    assert {file.name for file in out.iterdir()} == names
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1
    assert list(tmp_path.iterdir()) == [out]
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert json.loads((out / "alignment.json").read_text())["vocabulary"] == 374


@pytest.mark.slow
def test_no_path_of_this_machine_gets_out(run: TrainRun, tmp_path: Path) -> None:
    for number, settings in enumerate(({}, {"names": 5}, {"kind": "llm"}, {"kind": "projector"})):
        for file in written(run.out, tmp_path / f"{number}", **settings).iterdir():
            assert b"/tmp" not in file.read_bytes(), file
            assert str(tmp_path.parent).encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_the_card(run: TrainRun, tmp_path: Path) -> None:
    card = (written(run.out, tmp_path / "out") / "README.md").read_text()
    assert "write it as `license` into the head of this file" in card
    summary = json.loads((run.out / "summary.json").read_text())
    assert [line for line in card.splitlines() if line.startswith("### ")] == ["### align", "### mine"]
    assert f"| labels | `{summary['labels']}` |" in card
    assert f"| settings and inputs together | `{summary['fingerprint']}` |" in card
    start, end = (f"{summary[when]['lm_loss']:.4g}" for when in ("start", "end"))
    assert f"| lm_loss | {start} | {end} |" in card
    recipe = yaml.safe_load(card.split("```yaml")[2].split("```")[0])
    assert recipe["loss"] == {"sea": {"weight": 1.0}}
    assert recipe["data"] == {"train": "data.json", "image_root": "images", "evaluate": "held.json"}
    assert recipe["training_arguments"]["max_steps"] == 2
    assert "2408.11813" in card
    assert "{%" not in card


def test_the_projector_as_llava_names_it(run: TrainRun, tmp_path: Path) -> None:
    """LLaVA's is a Sequential of Linear, GELU, Linear called model.mm_projector."""
    stored = load_file(written(run.out, tmp_path / "a", kind="projector") / "mm_projector.safetensors")
    same = torch.load(written(run.out, tmp_path / "b", kind="projector", format="bin") / "mm_projector.bin")
    assert stored.keys() == same.keys()
    assert all(torch.equal(value, same[name]) for name, value in stored.items())
    assert len({file.stat().st_mode for kind in ("a", "b") for file in (tmp_path / kind).iterdir()}) == 1
    theirs = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 32))
    theirs.load_state_dict({name.removeprefix("model.mm_projector."): value for name, value in stored.items()})
    ours = tensors(run.model)
    features = torch.randn(5, 16)
    hidden = features @ ours["multi_modal_projector.linear_1.weight"].T + ours["multi_modal_projector.linear_1.bias"]
    wanted = torch.nn.functional.gelu(hidden) @ ours["multi_modal_projector.linear_2.weight"].T
    torch.testing.assert_close(theirs(features), wanted + ours["multi_modal_projector.linear_2.bias"])


def test_the_llm_alone(run: TrainRun, tmp_path: Path) -> None:
    out = written(run.out, tmp_path / "out", kind="llm")
    _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert not any("vision" in name or "projector" in name for name in tensors(out))
    assert not (out / "processor_config.json").exists()
    assert "text-generation" in (out / "README.md").read_text()


def test_several_files(run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        export_run, "write_weights", lambda entries, folder: write_weights(entries, folder, max_shard_size="30KB")
    )
    out = written(run.out, tmp_path / "out")
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert max(sum(value.nbytes for value in load_file(file).values()) for file in files) <= 52_000  # the embeddings
    before, after = tensors(run.model), tensors(out)
    assert {canonical(name) for name in after} == before.keys()
    assert all(torch.equal(value, before[canonical(name)]) for name, value in after.items())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == after.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in before.values())
    LlavaForConditionalGeneration.from_pretrained(out).save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    theirs = json.loads((tmp_path / "theirs" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == theirs["metadata"]
    assert index["weight_map"].keys() == theirs["weight_map"].keys()


def test_no_more_than_one_file_is_in_memory(tmp_path: Path) -> None:
    alive: set[int] = set()
    most: list[int] = []

    def read(number: int) -> torch.Tensor:
        value = torch.full((4, 25), float(number))  # 400 bytes
        alive.add(number)
        weakref.finalize(value, alive.discard, number)
        most.append(len(alive))
        return value

    entries = [Entry(str(number), 400, partial(read, number)) for number in range(7)]
    assert write_weights(entries, tmp_path, max_shard_size=1200) == (7, 2800)
    assert most == [1, 2, 3, 1, 2, 3, 1]
    assert {name: float(value[0, 0]) for name, value in tensors(tmp_path).items()} == {
        str(number): number for number in range(7)
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vision_tower.vision_model.encoder.x", "vision_tower.encoder.x"),
        ("model.vision_tower.vision_model.encoder.x", "vision_tower.encoder.x"),
        ("model.language_model.layers.0.x", "language_model.model.layers.0.x"),
        ("language_model.model.layers.0.x", "language_model.model.layers.0.x"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
    ],
)
def test_names_of_all_times(old: str, new: str) -> None:
    assert canonical(old) == new
    assert canonical(new) == new


def test_gemma_of_version_4_is_divided_as_4_multiplies() -> None:
    """In bfloat16 the factor of width 3072 is 55.5, not 55.43."""
    layer = torch.arange(1, 257).view(16, 16).bfloat16()
    entry = transformers4.Entry("multi_modal_projector.linear_2.weight", 8, lambda: layer)
    first = entry._replace(name="multi_modal_projector.linear_1.weight")
    untouched, made = transformers4.rescaled([first, entry], 3072)
    assert torch.equal(made.read(), (layer.double() / 55.5).bfloat16())
    assert not torch.equal(made.read(), (layer.double() / 3072**0.5).bfloat16())
    assert torch.equal(untouched.read(), layer)


def test_a_gemma_for_4_does_not_train(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", llm="gemma")
    done = export_model(ExportSettings.of(source=model, out=tmp_path / "old", rescale_projector=True))
    assert done.reader == "transformers 4 (tested: 4.57.6), transformers 5 before 5.4"
    assert "transformers 5.4 or newer and vLLM do not, and refuse" in " ".join(done.notes)
    assert "transformers 5.4 or newer and vLLM do not, and refuse" in (done.out / "README.md").read_text()
    with pytest.raises(ValueError, match=r"old: its projector was rescaled for another program"):
        export_model(ExportSettings.of(source=done.out, out=tmp_path / "again"))
    with pytest.raises(ValueError, match="versions that need the first do not read 5's names"):
        export_model(ExportSettings.of(source=model, out=tmp_path / "x", rescale_projector=True, names=5))


@pytest.mark.parametrize(
    ("llm", "names", "reader"),
    [
        ("gemma", None, "transformers 5.4 or newer, vLLM (tested: 0.33.0)"),
        ("gemma", 5, "transformers 5.6 or newer"),
        ("llama", 5, "transformers 5.6 or newer"),
        ("mixtral", 5, "transformers 5.6 or newer"),
    ],
)
def test_the_first_version_that_reads_a_folder_is_named(
    llm: str, names: int | None, reader: str, tmp_path: Path
) -> None:
    """5.0 to 5.3 scale all of Gemma's inputs and convert no nested LLM; 5.0 to 5.5 have another level. None stops."""
    model = tiny_model(tmp_path / "model", llm=llm)
    done = export_model(ExportSettings.of(source=model, out=tmp_path / "out", names=names))
    assert done.reader == reader
    assert f"for {reader}." in (done.out / "README.md").read_text()
    assert ("version 5 misreads it without a word" in " ".join(done.notes)) is (llm == "gemma")
    assert ("before 5.4 does not convert the weights of" in " ".join(done.notes)) is (llm == "mixtral")


def test_the_help_names_the_versions_of_the_readers() -> None:
    said = {name: field.description or "" for name, field in ExportSettings.model_fields.items()}
    assert f"need transformers {transformers4.WITHOUT_LEVEL} or newer" in " ".join(said["names"].split())
    assert f"in transformers before {transformers4.SCALING_WORDS}:" in " ".join(said["rescale_projector"].split())


@pytest.mark.slow
def test_the_packaged_tower_says_what_its_reader_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision, llm = tiny_vision(tmp_path / "vision"), tiny_llm(tmp_path / "llm", template=CHATML)
    model = init_model(f"s2:{vision}", str(llm), tmp_path / "model")
    done = export_model(ExportSettings.of(source=model, out=tmp_path / "out"))
    assert done.notes == ["transformers lacks the tower 'sea_s2': `import trainer.towers` before loading."]
    card = (done.out / "README.md").read_text()
    assert "import trainer.towers  # of the package sea-pipeline\n" in card
    assert done.reader == "transformers 5"
    with pytest.raises(ValueError, match=r"transformers 4 has no tower of the type 'sea_s2'.*--llm-only"):
        export_model(ExportSettings.of(source=model, out=tmp_path / "old", names=4))
    assert not (tmp_path / "old").exists()
    export_model(ExportSettings.of(source=model, out=tmp_path / "llm-4", names=4, kind="llm"))


@pytest.mark.slow
def test_a_tokenizer_that_transformers_takes_for_another_is_pointed_out(tmp_path: Path) -> None:
    """It reads every Qwen2's as Qwen's own, which splits words otherwise than the tiny one."""
    for llm in ("llama", "qwen2"):
        model = tiny_model(tmp_path / llm, llm=llm)
        done = export_model(ExportSettings.of(source=model, out=tmp_path / f"{llm}-alone", kind="llm"))
        found = [note for note in done.notes if "makes a Qwen2Tokenizer of the tokenizer" in note]
        assert len(found) == (llm == "qwen2")
        as_written = PreTrainedTokenizerFast.from_pretrained(done.out)  # as the note advises
        assert same_tokenizer(as_written, AutoTokenizer.from_pretrained(model))
        whole = export_model(ExportSettings.of(source=model, out=tmp_path / f"{llm}-whole"))
        assert same_tokenizer(AutoTokenizer.from_pretrained(whole.out), as_written)


@pytest.mark.slow
def test_compat_is_the_old_name_of_names(tmp_path: Path) -> None:
    for llm, settings in (("llama", {"names": 4}), ("gemma", {"names": 4, "rescale_projector": True})):
        model = tiny_model(tmp_path / llm, llm=llm)
        old = written(model, tmp_path / f"{llm}-old", compat=4)
        new = written(model, tmp_path / f"{llm}-new", **settings)
        for file in old.iterdir():
            assert file.read_bytes() == (new / file.name).read_bytes(), file.name
    assert tensors(written(model, tmp_path / "5", compat=5)).keys() == tensors(model).keys()


@pytest.mark.slow
def test_an_export_of_an_export_is_the_same(tmp_path: Path) -> None:
    """What stops a reader that would misread a folder says nothing of the next one."""
    model = tiny_model(tmp_path / "gemma", llm="gemma")
    first = written(model, tmp_path / "first")
    second = written(first, tmp_path / "second")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    rescaled = written(first, tmp_path / "third", rescale_projector=True)
    assert "pruned_heads" not in json.loads((rescaled / "config.json").read_text())


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROPES)
def test_version_5_reads_the_old_spelling_of_a_rope_as_its_own(kind: str, tmp_path: Path) -> None:
    """The old keys beside `rope_parameters` must not win over it with less in them."""
    family = "phi3" if kind == "longrope" else "llama"
    given = {"rope_theta": 50_000.0} | ROPES[kind] | ({"partial_rotary_factor": 1.0} if family == "phi3" else {})
    llm = tiny_llm(tmp_path / "llm", family, rope_parameters=given)
    model = init_model(str(tiny_vision(tmp_path / "vision")), str(llm), tmp_path / "model")
    new, old = (AutoConfig.from_pretrained(written(model, tmp_path / str(names), names=names)) for names in (5, None))
    old.text_config.rope_parameters.pop("type", None)  # Phi-3's word for `rope_type`, which is beside it
    assert old.text_config.rope_parameters == new.text_config.rope_parameters
    assert old.text_config.rope_parameters["rope_theta"] == 50_000.0
    assert given.items() <= old.text_config.rope_parameters.items()


def test_a_rope_for_each_kind_of_layer_is_refused() -> None:
    rope = {"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_theta": 2.0}}
    with pytest.raises(ValueError, match=r"several ropes, full_attention, sliding_attention"):
        transformers4.config({"model_type": "gemma3n_text", "rope_parameters": rope})
    scaled = rope | {"sliding_attention": {"rope_theta": 2.0, "rope_type": "linear", "factor": 8.0}}
    with pytest.raises(ValueError, match=r"several ropes, full_attention, sliding_attention"):
        transformers4.config({"model_type": "gemma3_text", "rope_parameters": scaled})
    found = transformers4.config({"model_type": "gemma3_text", "rope_parameters": rope})
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({"model_type": "qwen3_moe", "num_local_experts": 4}, {"num_experts": 4}),
        ({"model_type": "afmoe", "rope_parameters": {}}, {}),
    ],
)
def test_4s_keys_are_added(given: dict[str, Any], added: dict[str, Any]) -> None:
    assert transformers4.config(given) == given | added


@pytest.mark.parametrize("names", [None, 5])
def test_ropes_that_4_cannot_have_are_not_said_to_be_4s(names: int | None, tmp_path: Path) -> None:
    """`--names 4` refuses them."""
    rope = {"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_theta": 2.0}}
    config = {"model_type": "llava", "text_config": {"model_type": "olmo3", "rope_parameters": rope}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spell(tmp_path, names)
    (said,) = json.loads((tmp_path / "config.json").read_text())["pruned_heads"]
    assert said.endswith("for transformers 4; its configuration cannot express this LLM's ropes, so use transformers 5")


@pytest.mark.parametrize(
    ("tower", "llm", "five", "old", "vllm"),
    [
        ("clip_vision_model", "llama", "5", "tested: 4.57.6", "tested: 0.33.0"),
        ("siglip_vision_model", "phi3", "5", "tested: 4.57.6", "not tested with such an export"),
        ("clip_vision_model", "olmo2", "5", *["not tested with such an export"] * 2),
        (None, "llama", "5", "tested: 4.57.6", "not tested with such an export"),
        ("clip_vision_model", "olmoe", "5.4 or newer", *["not tested with such an export"] * 2),
        (None, "olmoe", "5", *["not tested with such an export"] * 2),
    ],
)
def test_tested_is_said_of_what_was_tested(tower: str | None, llm: str, five: str, old: str, vllm: str) -> None:
    text = {"model_type": llm}
    config = text if tower is None else {"text_config": text, "vision_config": {"model_type": tower}}
    found = transformers4.readers(config, by_4=True, by_others=True, names=None)
    assert found == f"transformers {five}, transformers 4 ({old}), vLLM ({vllm})"


def export_and_die() -> None:
    """Exports, and kills its process before the last file."""

    def die(*_: object, **__: object) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    export_run.model_card = die
    export_model(ExportSettings.of(source=Path(sys.argv[1]), out=Path(sys.argv[2])))


def test_a_kill_leaves_no_half_folder_and_the_next_call_clears_up(
    run: TrainRun, tmp_path: Path, program: Begin
) -> None:
    out = tmp_path / "out"
    assert program(run.out, out, main=export_and_die).wait() == -signal.SIGKILL
    assert not out.exists()
    (leftover,) = tmp_path.iterdir()
    assert (leftover / "model.safetensors").is_file()
    written(run.out, out)
    assert list(tmp_path.iterdir()) == [out]


MEASURED = f"""
import sys
from pathlib import Path
from trainer.model.tensor_files import read_weights, write_weights
from trainer.export import transformers4
import torch
torch.set_num_threads(1)
source, out = map(Path, sys.argv[1:])
{READY}
write_weights(transformers4.rescaled(transformers4.renamed(read_weights(source), "clip_vision_model"), 8), out)
"""


@pytest.mark.processes
def test_memory_is_that_of_what_is_computed(tmp_path: Path) -> None:
    """Of 256 MB, 16 MB are computed anew; the rest passes by."""
    part = torch.zeros(16 * 2**18)  # 16 MB
    names = [f"language_model.model.layers.{number}.x" for number in range(15)]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = [(name, part) for name in [*names, "multi_modal_projector.linear_2.weight"]]
    write_weights(
        [transformers4.Entry(name, value.nbytes, lambda value=value: value + 1) for name, value in source],
        tmp_path / "in",
    )
    assert len(read_weights(tmp_path / "in")) == 16
    memory = measured("-c", MEASURED, str(tmp_path / "in"), str(tmp_path / "out"))
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) > 256e6
    assert memory.peak - memory.before < 100e6
