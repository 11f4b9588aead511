"""Weights that are fetched, and weights that lie here."""

import logging
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import load_encoder
from sea_pipeline.encoders.open_clip_models import find_model
from tests.support.refused import refused
from tests.support.tiny_clip import CLIP, add_architecture, changed, random_model, save_model


@pytest.mark.parametrize("typed", ["", "#final"])
def test_weights_that_cannot_be_fetched_are_one_line_with_the_exits(
    typed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The user hears what is looked for and what ended the last try, and not what the hub's client says of each one."""
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(**_: object) -> None:
        for retry in range(1, 6):
            logging.getLogger("huggingface_hub.utils._http").warning("Retrying [Retry %d/5]", retry)
        try:
            raise OSError(-2, "Name or service not known")
        except OSError as error:
            raise hub.errors.LocalEntryNotFoundError("An error happened. " * 30) from error

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", unreachable)
    tag, level = "ViT-B-32/laion2b_s34b_b79k", logging.getLogger("huggingface_hub").level
    with caplog.at_level(logging.INFO), pytest.raises(UserError) as caught:
        load_encoder(f"open_clip:{tag}{typed}", "cpu").fields()
    assert [record.message for record in caplog.records] == [f"finding the weights of {tag}, which are downloaded once"]
    assert str(caught.value) == (
        f"--encoder open_clip:{tag}: its weights cannot be fetched: Failed to download file "
        "(open_clip_pytorch_model.bin) for laion/CLIP-ViT-B-32-laion2B-s34B-b79K ([Errno -2] Name or service not "
        "known); with a network try again, or give what you have already, open_clip:ViT-B-32/FILE.pt, or leave out "
        "--encoder for the packaged one"
    )
    assert logging.getLogger("huggingface_hub").level == level


TRANSFORMERS = {
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336-quickgelu/openai",
    "openai/clip-vit-base-patch32": "ViT-B-32-quickgelu/openai",
    "google/siglip-so400m-patch14-384": "ViT-SO400M-14-SigLIP-384/webli",
    "google/siglip-base-patch16-224": "ViT-B-16-SigLIP/webli",
    "google/siglip-base-patch16-256-multilingual": "ViT-B-16-SigLIP-i18n-256/webli",
    "google/siglip2-giant-opt-patch16-384": "ViT-gopt-16-SigLIP2-384/webli",
    "facebook/metaclip-h14-fullcc2.5b": "ViT-H-14-quickgelu/metaclip_fullcc",
}
"""Repositories of the hub in transformers' form, and the same weights as open_clip lists them."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repository", "offline"),
    [
        *((repository, False) for repository in (*TRANSFORMERS, "google/siglip2-base-patch16-naflex", "some/bert")),
        ("openai/clip-vit-base-patch32", True),
        ("some/bert", True),
    ],
)
def test_a_repository_of_transformers_is_called_one(
    repository: str, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def absent(*, filename: str, **_: object) -> None:
        if offline:
            raise hub.errors.LocalEntryNotFoundError("offline")
        response = SimpleNamespace(status_code=404, headers={}, request=SimpleNamespace(url=filename))
        raise hub.errors.RemoteEntryNotFoundError("404", response=response)

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", absent)
    known = TRANSFORMERS.get(repository)
    with pytest.raises(UserError) as caught:
        load_encoder(f"open_clip:hf-hub:{repository}", "cpu")
    said = str(caught.value)
    if offline and known is None:
        assert "with a network try again" in said
        return
    assert f": expected a repository with open_clip_config.json; {repository} has none, " in said
    if known is None:
        assert said.endswith("give a repository of open_clip's form")
        return
    advice = re.search(r"give (\S+) for the same weights$", said)
    assert advice
    assert advice[1] == f"open_clip:{known}"
    assert find_model(known, "--encoder").model == known


def test_a_package_that_tokenizers_need_is_named_before_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    find_model("ViT-B-32/openai", "--encoder x")
    with refused("'transformers' cannot be imported", "install it with: pip install ", "[clip]"):
        find_model("ViT-B-16-SigLIP/webli", "--encoder x")


TAGS = [
    ("laion400m_e31", "open_clip:ViT-L-14/FILE.pt"),
    ("openai", "open_clip:ViT-L-14-quickgelu/FILE.pt"),
    ("laion2b_s32b_b82k", "open_clip:FOLDER with its open_clip_config.json"),
]
"""Tags of ViT-L-14 that have GELU, QuickGELU, and GELU with a mean of 0.5."""


@pytest.mark.slow
@pytest.mark.parametrize(("tag", "advice"), TAGS)
def test_what_lies_here_already_is_read_as_the_tag_is(
    tag: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Followed to the letter, offline and for a file that is given under the plain architecture."""
    import open_clip
    from open_clip import factory

    quick = changed(CLIP, quick_gelu=True)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-L-14", CLIP)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-L-14-quickgelu", quick)
    file = tmp_path / "mine.pt"
    torch.save(random_model(CLIP).state_dict(), file)
    values = torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(file))
    wanted = load_encoder(f"open_clip:ViT-L-14/{tag}", "cpu").patches(values)
    monkeypatch.setattr(open_clip, "download_pretrained", Mock(side_effect=OSError("no network")))
    with refused(f"or give what you have already, {advice}, or leave out"):
        load_encoder(f"open_clip:ViT-L-14/{tag}", "cpu").fields()
    pixels = {name: open_clip.get_pretrained_cfg("ViT-L-14", tag)[name] for name in ("mean", "std")}
    folder = save_model(tmp_path / "folder", random_model(CLIP), CLIP, pixels)
    spec = advice.partition(" with ")[0].replace("FILE.pt", str(file)).replace("FOLDER", str(folder))
    caplog.clear()
    assert torch.equal(load_encoder(spec, "cpu").patches(values), wanted)
    load_encoder(spec, "cpu")
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    if tag != "laion400m_e31":
        assert warned == []
        return
    (line,) = warned
    assert line.startswith(f"--encoder {spec}: a file of weights does not say how it is read; GELU, pixels of mean ")
    assert line.endswith(
        "wrong for some weights of ViT-L-14: for openai, metaclip_400m, metaclip_fullcc, dfn2b give "
        f"{TAGS[1][1]}; for laion2b_s32b_b82k give {TAGS[2][1]}"
    )


def write_archive(file: Path, state: dict[str, torch.Tensor]) -> None:
    """A TorchScript archive of weights, with the three numbers that OpenAI's have beside them."""
    root = torch.nn.Module()
    for name, value in state.items():
        *outer, last = name.split(".")
        module = root
        for part in outer:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_buffer(last, value)
    for name in ("input_resolution", "context_length", "vocab_size"):
        root.register_buffer(name, torch.ones(()))
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        torch.jit.script(root).save(str(file))


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_the_weights_of_a_torchscript_archive_are_written_as_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_architecture(monkeypatch)
    archive, plain, state = tmp_path / "it's mine.pt", tmp_path / "plain.pt", random_model(CLIP).state_dict()
    write_archive(archive, state)
    torch.save(state, plain)
    with pytest.raises(UserError, match="expected weights alone; found a TorchScript archive") as caught:
        load_encoder(f"open_clip:tiny/{archive}", "cpu")
    python, *arguments = shlex.split(str(caught.value).partition("give that one: ")[2])
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    values = torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ours, wanted = (load_encoder(f"open_clip:tiny/{file}", "cpu").patches(values) for file in (arguments[-1], plain))
    assert torch.equal(ours, wanted)


def test_what_transformers_saved_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_architecture(monkeypatch)
    parts = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(text_config=parts, vision_config=parts, projection_dim=8)
    model = CLIPModel(config)
    model.save_pretrained(tmp_path / "m")
    torch.save(model.state_dict(), tmp_path / "m.pt")
    told = [
        (tmp_path / "m", "m; found transformers' config.json of model_type 'clip'; give "),
        (f"tiny/{tmp_path}/m/model.safetensors", "found those of transformers in"),
        (f"tiny/{tmp_path}/m.pt", "found those of transformers in"),
    ]
    for spec, problem in told:
        with refused(problem, start=f"--encoder open_clip:{spec}: expected "):
            load_encoder(f"open_clip:{spec}", "cpu")
