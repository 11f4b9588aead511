"""What alignment without the LLM needs where there is no GPU: `python -m tests.bench.laptop SCRATCH`

A run as jobs/align-7b.yaml describes it, of LLaVA-1.5-7B's shape with random weights, on one thread: seconds to start,
of a step, of an image's features, of saving, and the most memory. SCRATCH, a new folder, gets 28 GB; then delete it.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, LlavaForConditionalGeneration

from sea_pipeline import open_labels
from sea_pipeline.core.progress import Reporter
from tests.bench.bench_label import crops
from tests.bench.gpu.align import colour_labels
from tests.bench.gpu.shapes import SEVEN_B, TINY, Shape
from tests.bench.steps import Clock, conversations
from tests.support.memory import READY, measured
from tests.support.tiny_models import VOCABULARY, tiny_llm, tiny_vision
from trainer.data.inputs import Inputs
from trainer.data.run_rows import open_conversations
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.assemble import init_model
from trainer.model.load import open_model_folder
from trainer.model.parts import quiet
from trainer.model.save import save_model
from trainer.recipes.files import read_recipes
from trainer.recipes.names import builtin_recipes
from trainer.training.build import build

PHOTOS, BATCH, STEPS = 24, 8, 6


def prepare(scratch: Path, shape: Shape) -> None:
    """A model folder, photos, LLaVA's JSON and labels."""
    folder = crops(scratch / "photos", PHOTOS)
    conversations(scratch / "photos.json", sorted(path.name for path in folder.iterdir()))
    colour_labels(shape.vision, scratch / "labels", images=str(scratch / "photos.json"), image_root=folder)
    text = shape.text | {"num_key_value_heads": shape.text["num_attention_heads"]}
    text["vocab_size"] = max(VOCABULARY, shape.vocabulary)
    vision = tiny_vision(scratch / "vision", **shape.vision)
    few = text | {"num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": VOCABULARY}
    llm = tiny_llm(scratch / "llm", **few)
    small = init_model(str(vision), str(llm), scratch / "small", dtype="bfloat16")
    config: Any = AutoConfig.from_pretrained(small)
    for name, value in text.items():
        setattr(config.text_config, name, value)
    with quiet():
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(scratch / "model", max_shard_size="5GB")
    for file in small.iterdir():
        if not (scratch / "model" / file.name).exists() and file.suffix != ".safetensors":
            shutil.copy2(file, scratch / "model")


class Timed(Reporter):
    """Sums the seconds of each part that has a bar, and divides them by its items."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    @contextmanager
    def progress(self, what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        begun = time.perf_counter()
        yield lambda _: None
        self._seconds[what] = self._seconds.get(what, 0) + time.perf_counter() - begun
        self._seconds[f"{what}, of an image"] = self._seconds[what] / total


def run(scratch: Path) -> dict[str, float]:
    """Seconds by part."""
    seconds: dict[str, float] = {}
    given = [f"model={scratch}/model", f"data.train={scratch}/photos.json", f"data.image_root={scratch}/photos",
             f"labels.path={scratch}/labels", "data.keep_features=true", f"training_arguments.max_steps={STEPS}",
             f"training_arguments.per_device_train_batch_size={BATCH}"]  # fmt: skip
    (recipe,) = read_recipes(builtin_recipes()["align-7b"], given).values()
    clock, begun = Clock(), time.perf_counter()
    folder = open_model_folder(recipe.model)
    inputs = Inputs(recipe, folder, open_conversations(recipe.data, folder), open_labels(scratch / "labels"))
    trainer = build(inputs, scratch / "run", Timed(seconds), [clock])
    seconds["start"] = time.perf_counter() - begun - seconds.pop("features")
    trainer.train()
    pairs = zip(clock.ends[1:], clock.ends[2:], strict=False)
    seconds["a step"] = statistics.median(later - earlier for earlier, later in pairs)
    begun = time.perf_counter()
    save_model(cast("AlignedLlava", trainer.model), folder, scratch / "run" / "model", recipe)
    return seconds | {"saving": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--tiny", action="store_true", help="whether it works, not what it needs")
    parser.add_argument("--prepared", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    scratch = asked.scratch.resolve()
    if asked.prepared:
        exec(READY)
        (scratch / "seconds.json").write_text(json.dumps(run(scratch)))
        return
    scratch.mkdir(parents=True)
    prepare(scratch, TINY if asked.tiny else SEVEN_B)
    memory = measured("-m", "tests.bench.laptop", str(scratch), "--prepared")
    for part, spent in json.loads((scratch / "seconds.json").read_text()).items():
        print(f"{part}: {spent:.1f} s")
    print(f"memory: {memory.peak / 1e9:.1f} GB, the imports' {memory.before / 1e9:.1f} GB included")


if __name__ == "__main__":
    main()
