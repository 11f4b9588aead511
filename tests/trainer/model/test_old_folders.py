"""A LLaVA that transformers 4 wrote, such as those on the hub: measured, taught from, exported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.support import old_folder
from tests.support.exported import COMPAT4
from tests.support.refused import ran
from tests.support.tiny_models import tiny_tokenizer
from tests.support.tiny_runs import World
from trainer.export.run import ExportSettings, export_model
from trainer.model.aspect_ratio import write_image_processor
from trainer.model.load import load_model, open_model_folder
from trainer.recipes.recipe import Recipe
from trainer.targets.store import open_targets

pytestmark = pytest.mark.processes

BY_4 = """
import json, sys
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
assert type(processor).__name__ == "LlavaImageProcessor", type(processor)
pixels = np.asarray(processor(Image.open(sys.argv[2]), return_tensors="np")["pixel_values"])
print(json.dumps(pixels.tolist()))
"""
MESSAGES = [{"role": "user", "content": "<image>\nWhat do you see?"}]


@pytest.fixture(scope="module")
def old(_made: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not COMPAT4.is_dir():
        pytest.skip("transformers 4 is not there: `make .venv` installs it")
    root = tmp_path_factory.mktemp("old")
    tiny_tokenizer(root / "tokenizer")
    picture = _made.data.parent / "images" / "00.png"
    command = [sys.executable, "-W", "ignore", old_folder.__file__, root / "tokenizer" / "tokenizer.json", picture]
    environment = os.environ | {"PYTHONPATH": str(COMPAT4)}
    done = subprocess.run([*command, root / "llava"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root / "llava"


def test_the_folder_is_an_old_one(old: Path) -> None:
    config = json.loads((old / "config.json").read_text())
    assert config["image_seq_length"] == 576
    assert "rope_parameters" not in config["text_config"]
    assert config["text_config"]["rope_theta"] == 70
    assert not (old / "processor_config.json").exists()
    assert (old / "preprocessor_config.json").exists()


@torch.no_grad()
def test_it_gives_what_it_gave(old: Path, tmp_path: Path) -> None:
    """Through our model, and through stock transformers 5 once it is exported."""
    told = json.loads((old.parent / "logits.json").read_text())
    folder = open_model_folder(old)
    assert folder.grid == (4, 4)
    assert folder.vocabulary == 374, "without <image> and what was added after it"
    given = {"input_ids": torch.tensor(told["ids"]), "pixel_values": torch.tensor(told["pixels"])}
    ours = load_model(folder, Recipe(model=old)).eval()
    np.testing.assert_allclose(ours(**given).logits[0], told["logits"], atol=1e-4)

    out = export_model(ExportSettings.of(source=old, out=tmp_path / "new")).out
    stock, report = LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    np.testing.assert_allclose(stock(**given).logits[0], told["logits"], atol=1e-4)
    processor = AutoProcessor.from_pretrained(out)
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert text == "USER: <image>\nWhat do you see? ASSISTANT:"
    assert processor.tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == text
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    assert processor(images=image, text=text, return_tensors="pt")["input_ids"].tolist() == told["ids"]
    config = json.loads((out / "config.json").read_text())
    assert config["image_seq_length"] == 16
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert json.loads((out / "alignment.json").read_text())["vocabulary"] == 374


def test_it_pads_in_either_version_once_a_stage_has_said_so(old: Path, tmp_path: Path) -> None:
    """Version 4 reads preprocessor_config.json alone, and resizes by PIL."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    asked, folder = open_model_folder(old, "pad"), Path(shutil.copytree(old, tmp_path / "padded"))
    write_image_processor(asked.processor.image_processor, folder)
    assert {file.name for file in folder.iterdir()} == {file.name for file in old.iterdir()}
    ours, stock, cropped = (
        one.image_processor(Image.fromarray(noise), return_tensors="np")["pixel_values"]
        for one in (asked.processor, AutoProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(old))
    )
    assert np.array_equal(stock, ours)
    assert not np.allclose(cropped, ours, atol=0.1)
    environment = os.environ | {"PYTHONPATH": str(COMPAT4)}
    command = [sys.executable, "-W", "ignore", "-c", BY_4, str(folder), str(tmp_path / "photo.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    levels = 255 * np.array(asked.processor.image_processor.image_std)[:, None, None]
    np.testing.assert_allclose(np.array(json.loads(done.stdout)) * levels, ours * levels, atol=2.001)


def test_evaluate(command: Any, old: Path, tiny: World) -> None:
    arguments = ["--data", tiny.held_out, "--image-root", tiny.data.parent / "images", "--labels", tiny.labels]
    for template in ("own", "vicuna_v1"):
        found = json.loads(ran(command, "evaluate", old, *arguments, "--json", "--template", template))
        assert {"lm_loss", "tacs", "label_hit@10", "gap", "meaningful"} <= set(found)
        assert 4 < found["lm_loss"] < 20


def test_teacher(command: Any, old: Path, tiny: World, tmp_path: Path) -> None:
    arguments = ["--data", tiny.held_out, "--image-root", tiny.data.parent / "images", "--out", tmp_path / "targets"]
    ran(command, "teacher", "--model", old, *arguments, "--codec", "float16")
    store = open_targets(tmp_path / "targets")
    assert (store.grid, store.width) == ((4, 4), 32)
    assert np.isfinite(store[store.ids[0]].refined).all()
