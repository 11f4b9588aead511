"""Folders of the hub's forms that cannot be read, one line each; those that lack a file and can; advice that works."""

import importlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from sea_pipeline.core.errors import UserError
from tests.hub_forms import write_form
from tests.hub_forms.files import LFS_POINTER
from tests.support.initialised import edit, load
from tests.support.refused import refused
from trainer.model.assemble import init_model
from trainer.model.folder_check import check_model_folder

CLIP, SIGLIP, DINO = "openai/clip-vit-large-patch14-336", "google/siglip-so400m-patch14-384", "facebook/dinov2-large"
VICUNA, MISTRAL, LLAMA3 = "lmsys/vicuna-7b-v1.5", "mistralai/Mistral-7B-v0.1", "meta-llama/Meta-Llama-3-8B-Instruct"
LORA = {"peft_type": "LORA", "base_model_name_or_path": VICUNA, "r": 8, "target_modules": ["q_proj"]}
Mend = Callable[[Path], object]


class Code:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("code-was-run",)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a form into the working folder and makes a model of it and of another part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))

    def make(name: str) -> Path:
        vision, llm = (name, VICUNA) if name in (CLIP, SIGLIP, DINO) else ("clip-tower", name)
        for part in (vision, llm):
            if not Path(part).exists():
                write_form(tmp_path, part)
        return init_model(vision, llm, Path("out"))

    return make


def refused_when(made: Callable[[str], Path], name: str, mend: Mend, message: str) -> None:
    """Writes the form, breaks it, and finds the message, in one line and with nothing left."""
    write_form(Path.cwd(), name)
    mend(Path(name))
    with refused(start=name, match=message):
        made(name)
    assert not Path("out").exists()
    assert not Path("code-was-run").exists()


def without(*names: str) -> Mend:
    return lambda folder: [file.unlink() for name in names for file in folder.glob(name)]


def damaged(name: str, data: bytes) -> Mend:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str) -> Mend:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:5000])


def dangling(name: str) -> Mend:
    """The hub's cache, of which a file was removed."""
    return lambda folder: ((folder / name).unlink(), (folder / name).symlink_to("gone"))


def code_in(name: str) -> Mend:
    return lambda folder: torch.save({"model.embed_tokens.weight": Code()}, folder / name)


def set_in(name: str, **changes: Any) -> Mend:
    return lambda folder: edit(folder / name, **changes)


METHODS: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "hqq": {"quant_method": "hqq", "quant_config": {}},
    "torchao": {"quant_method": "torchao", "quant_type": {}},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "nonesuch": {"quant_method": "nonesuch"},
    "by a method without a name": {"bits": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name"), list(zip(METHODS, cycle([VICUNA, CLIP]), strict=False)))
def test_quantised_weights(made: Callable[[str], Path], name: str, method: str) -> None:
    mend = set_in("config.json", quantization_config=METHODS[method])
    refused_when(made, name, mend, rf"weights are quantised \({method}\).*give the model that it was made from")


@pytest.mark.parametrize(("name", "part"), [(CLIP, "vision_config"), (SIGLIP, "text_config")])
def test_quantised_weights_of_a_part(made: Callable[[str], Path], name: str, part: str) -> None:
    def mend(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        edit(folder / "config.json", **{part: said[part] | {"quantization_config": METHODS["nonesuch"]}})

    refused_when(made, name, mend, r"quantised \(nonesuch\)")


def test_a_llava_with_quantised_weights(made: Callable[[str], Path]) -> None:
    folder = made(VICUNA)
    edit(folder / "config.json", quantization_config=METHODS["gptq"])
    with pytest.raises(UserError, match=r"^out: its config.json says that its weights are quantised \(gptq\)"):
        check_model_folder(folder)


@pytest.mark.parametrize("empty", [None, {}])
def test_no_quantisation_is_none(made: Callable[[str], Path], empty: Any) -> None:
    edit(write_form(Path.cwd(), VICUNA) / "config.json", quantization_config=empty)
    assert "quantization_config" not in (made(VICUNA) / "config.json").read_text()


@pytest.mark.parametrize(
    ("name", "file", "owner", "added"),
    [
        (MISTRAL, "model-00002-of-00002.safetensors", "layers.1.mlp.up_proj", "weight_scale"),
        (MISTRAL, "model-00002-of-00002.safetensors", "layers.1.mlp.up_proj", "bias"),
        (SIGLIP, "model.safetensors", "encoder.layers.1.mlp.fc1", "weight_scale"),
        (DINO, "model.safetensors", "encoder.layer.1.mlp.fc1", "weight.absmax"),
    ],
)
def test_weights_that_have_no_place(made: Callable[[str], Path], name: str, file: str, owner: str, added: str) -> None:
    """Quantised in a way that config.json does not tell; or the biases of another architecture."""

    def mend(folder: Path) -> None:
        weights = load_file(folder / file)
        (whole,) = [one for one in weights if one.endswith(f"{owner}.weight") and not one.startswith("text_model")]
        if added != "bias":
            weights[whole] = weights[whole].to(torch.float8_e4m3fn)
        weights[whole.removesuffix("weight") + added] = torch.ones(1)
        save_file(weights, folder / file, metadata={"format": "pt"})

    refused_when(made, name, mend, rf"has no place for the weights \S*{owner}\.{added}; give plain weights")


@pytest.mark.slow
@pytest.mark.parametrize("name", [VICUNA, CLIP])
def test_an_adapter(made: Callable[[str], Path], name: str) -> None:
    def alone(folder: Path) -> None:
        without("*")(folder)
        damaged("adapter_config.json", json.dumps(LORA).encode())(folder)

    said = rf"holds an adapter \(adapter_config.json\) for {VICUNA}, not a whole model; merge them .* give that folder"
    refused_when(made, name, alone, f"{said}$")
    shutil.rmtree(name)
    refused_when(made, name, damaged("adapter_config.json", json.dumps(LORA).encode()), f"{said}, or remove")
    (Path(name) / "adapter_config.json").unlink()
    assert made(name).is_dir()


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [(VICUNA, {"auto_map": {"AutoConfig": "configuration_x.X"}}, r"code \(auto_map\), which is never"), (CLIP, {}, "")],
)
def test_a_type_that_transformers_lacks(made: Callable[[str], Path], name: str, code: Any, said: str) -> None:
    mend = set_in("config.json", model_type="nonesuch", **code)
    refused_when(made, name, mend, f"transformers .* lacks its model type 'nonesuch'.*{said}")


def test_a_tokenizer_of_code(made: Callable[[str], Path]) -> None:
    code = {"tokenizer_class": "XTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}}
    refused_when(made, VICUNA, set_in("tokenizer_config.json", **code), r"its tokenizer comes as code \(auto_map\)")
    _follow_tokenizer_advice()
    said = json.loads(Path(VICUNA, "tokenizer_config.json").read_text())
    del said["auto_map"]
    Path(VICUNA, "tokenizer_config.json").write_text(json.dumps(said))
    assert made(VICUNA).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "kind", "said"),
    [
        ("spiece.model", "GPTSw3Tokenizer", "its tokenizer GPTSw3Tokenizer is not a fast one"),
        ("sentencepiece.bpe.model", "XGLMTokenizer", "no words, as transformers reads its sentencepiece.bpe.model; "),
    ],
)
def test_a_sentence_piece_model_that_no_fast_class_reads(
    file: str, kind: str, said: str, made: Callable[[str], Path]
) -> None:
    """XGLM's class reads none without a tokenizer.json."""

    def mend(folder: Path) -> None:
        (folder / "tokenizer.model").rename(folder / file)
        edit(folder / "tokenizer_config.json", tokenizer_class=kind)

    refused_when(made, VICUNA, mend, f"{said}.*add a tokenizer.json")
    _follow_tokenizer_advice()
    assert made(VICUNA).is_dir()


def _follow_tokenizer_advice() -> None:
    shutil.copy(write_form(Path("other"), MISTRAL) / "tokenizer.json", VICUNA)
    edit(Path(VICUNA, "tokenizer_config.json"), tokenizer_class="PreTrainedTokenizerFast")


@pytest.mark.slow
def test_an_image_processor_that_cannot_be_used(made: Callable[[str], Path]) -> None:
    file = "preprocessor_config.json"
    code = {"image_processor_type": "XProcessor", "auto_map": {"AutoImageProcessor": "image_processing_x.XProcessor"}}
    for mend, said in [
        (set_in(file, **code), r"it comes as code \(auto_map\)"),
        (set_in(file, image_processor_type="Nonesuch"), "Unrecognized image processor"),
        (damaged(file, b"{"), ".* is not a valid JSON"),
    ]:
        refused_when(made, SIGLIP, mend, rf"its {file} cannot be used \({said}.*correct it, or remove it")
        Path(SIGLIP, file).unlink()
        _, processor = load(made(SIGLIP))
        assert dict(processor.image_processor.size) == {"height": 36, "width": 36}
        shutil.rmtree("out")
        shutil.rmtree(SIGLIP)


BIN, SAFE = "pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"
POINTER = LFS_POINTER.encode()
NOT_SENTENCE_PIECE = "its tokenizer.model is damaged, or none of SentencePiece; copy it again, or add"
FILES: dict[str, tuple[str, Mend, str]] = {
    "no shard of .bin": (VICUNA, without("*2-of-00002.bin"), r"/pytorch_model-00002-of-00002.bin: is missing"),
    "no shard": (MISTRAL, without("*2-of-00002.safetensors"), r"/model-00002-of-00002.safetensors: is missing"),
    "a link to no file": (SIGLIP, dangling("model.safetensors"), "/model.safetensors: is missing, and a link to it"),
    "damaged ends": (MISTRAL, damaged("generation_config.json", b"{"), "/generation_config.json: cannot be read as J"),
    "a damaged index": (VICUNA, damaged("pytorch_model.bin.index.json", b"{"), r"bin.index.json: is damaged; copy it"),
    "an index of nothing": (VICUNA, damaged("pytorch_model.bin.index.json", b"[]"), r"bin.index.json: is damaged"),
    "no index": (VICUNA, without("*.index.json"), "no file named model.safetensors"),
    "no weights": (CLIP, without("*.bin"), "no file named model.safetensors"),
    "half of a .bin": (VICUNA, cut(BIN), f"/{BIN}: is damaged"),
    "half of a safetensors": (SIGLIP, cut("model.safetensors"), r"/model.safetensors: is damaged"),
    "an empty .bin": (CLIP, damaged("pytorch_model.bin", b""), r"/pytorch_model.bin: is damaged \(EOFError\)"),
    "code": (CLIP, damaged("pytorch_model.bin", pickle.dumps(Code())), "a pickle that holds more than tensors"),
    "code in a file of tensors": (VICUNA, code_in(BIN), f"/{BIN}: is damaged, or a pickle .* never run here"),
    "a pointer for .bin": (CLIP, damaged("pytorch_model.bin", POINTER), "/pytorch_model.bin: is Git LFS's pointer"),
    "a pointer": (MISTRAL, damaged(SAFE, POINTER), f"/{SAFE}: is Git LFS's pointer .* git lfs pull in {MISTRAL}"),
    "a pointer for SentencePiece": (VICUNA, damaged("tokenizer.model", POINTER), "tokenizer.model: is Git LFS's"),
    "a pointer for tokenizers": (LLAMA3, damaged("tokenizer.json", POINTER), "tokenizer.json: is Git LFS's"),
    "an empty SentencePiece model": (VICUNA, damaged("tokenizer.model", b""), "its tokenizer has no words"),
    "half of a SentencePiece model": (VICUNA, cut("tokenizer.model"), NOT_SENTENCE_PIECE),
    "a tiktoken file": (VICUNA, damaged("tokenizer.model", b"IQ== 0\n"), NOT_SENTENCE_PIECE),
    "no vocabulary": (VICUNA, without("tokenizer.model"), "its tokenizer has no words; expected a tokenizer.json"),
    "no tokenizer": (VICUNA, without("*token*"), "its tokenizer has no words"),
    "a size that is text": (VICUNA, set_in("config.json", hidden_size="32"), "expected int, got str"),
    "other sizes": (VICUNA, set_in("config.json", intermediate_size=64), r"weight and 5 more: expected \(32, "),
    "a dtype of 8 bits": (CLIP, set_in("config.json", dtype="float8_e4m3fn"), r"quantised \(float8_e4m3fn\)"),
    "a list": (CLIP, damaged("config.json", b"[]"), r"/config.json: expected a JSON object; found \[\]; re"),
    "a list for words": (MISTRAL, damaged("tokenizer_config.json", b"[]"), r"_config.json: expected a JSON object"),
    "no such dtype": (VICUNA, set_in("config.json", torch_dtype="float99"), "float99"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_missing_or_damaged(made: Callable[[str], Path], kind: str) -> None:
    refused_when(made, *FILES[kind])


def test_a_pointer_that_nobody_reads(made: Callable[[str], Path]) -> None:
    """A clone that fetched the safetensors alone."""
    for file in write_form(Path.cwd(), MISTRAL).glob("*.bin"):
        file.write_text(LFS_POINTER)
    assert made(MISTRAL).is_dir()


def test_without_sentencepiece(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def extract(*_: object) -> None:
        raise ImportError("sentencepiece")

    conversion = importlib.import_module("transformers.convert_slow_tokenizer")  # a function has that name, too
    monkeypatch.setattr(conversion, "SentencePieceExtractor", extract)
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    write_form(Path.cwd(), VICUNA)
    with pytest.raises(UserError, match=r"sentencepiece.* cannot be imported .*pip install .*\[train\]'$"):
        made(VICUNA)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lacking", "front", "end"),
    [
        (VICUNA, ["*token*.json"], "<s>", "</s>"),
        ("google/gemma-2b", ["*token*.json"], "<bos>", "<eos>"),
        (MISTRAL, ["tokenizer.model", "tokenizer_config.json", "special*"], "<s>", "</s>"),
        (LLAMA3, ["tokenizer_config.json", "special*"], "<|begin_of_text|>", "<|eot_id|>"),
        ("microsoft/Phi-3-mini-4k-instruct", ["tokenizer.json", "added*"], None, "<|end|>"),
    ],
)
def test_a_tokenizer_of_fewer_files(
    made: Callable[[str], Path], name: str, lacking: list[str], front: str | None, end: str
) -> None:
    """SentencePiece alone or tokenizer.json alone: the same ids as with all files."""
    whole = AutoTokenizer.from_pretrained(made(name))
    shutil.rmtree("out")
    without(*lacking)(Path(name))
    left = AutoTokenizer.from_pretrained(made(name))
    text = "A photo of 12 caf\u00e9s\nand more."
    assert left.encode(text) == whole.encode(text)
    assert left.convert_ids_to_tokens(left.encode("a")[:1]) == [front] or front is None
    assert left.eos_token == end
