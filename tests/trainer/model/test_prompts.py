"""`loss.basic.text: prompt`, where the text behind an image is all trained: every patch would count the same."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT
from tests.support.analysis_models import record, write
from tests.support.refused import refused
from tests.support.tiny_runs import World, tiny_recipe, tiny_trainer
from trainer.data.conversations import FEATURES
from trainer.data.run_rows import Conversations, check_prompts
from trainer.model.load import open_model_folder
from trainer.recipes.recipe import Basic
from trainer.teacher.run import TeachSettings, teach_images
from trainer.training import run as train_run
from trainer.training.run import train

PROMPT = Basic(text="prompt")
BASIC: dict[str, Any] = {"sea": {"weight": 0}, "das": {"weight": 1.0}, "basic": {"text": "prompt", "layers": 1}}
MESSAGE = (
    r"`prompt` is the text behind an image that is not trained; {} of {} images of .* have none, such as that of {}"
)


def captions(path: Path, count: int = 4) -> Path:
    return write(path, [record(f"r{n}", [f"{n:02d}.png"], "What?", "a red patch") for n in range(count)])


def test_plain_is_refused(tiny: World, tmp_path: Path) -> None:
    """Before the model is loaded, and also where targets are made for later."""
    data = {"train": str(captions(tmp_path / "data.json")), "template": "plain"}
    recipe = tiny_recipe(tiny, data=data, loss=BASIC)
    with refused(match="loss.basic.text: " + MESSAGE.format(4, 4, "'r0'")):
        train(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    teacher = TeachSettings.of(
        model=tiny.model, data=data["train"], image_root=tiny.data.parent / "images", template="plain",
        basic={"text": "prompt"}, out=tmp_path / "targets", device="cpu",
    )  # fmt: skip
    with pytest.raises(UserError, match="--text: " + MESSAGE.format(4, 4, "'r0'")):
        teach_images(teacher)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"template": "own"}},
        {"data": {"template": "vicuna_v1"}},
        {"loss": {"basic": {"text": "all"}}},
        {"loss": {"basic": {"degree": "equal"}}},  # which looks at no text
        {"loss": {"das": {"weight": 0}, "sea": {"weight": 1}}},
    ],
)
def test_what_the_text_sees_goes_on(changes: dict[str, Any], tiny: World, tmp_path: Path) -> None:
    loss = {name: BASIC[name] | changes.get("loss", {}).get(name, {}) for name in BASIC}
    data = {"train": str(captions(tmp_path / "data.json")), "template": "plain"} | changes.get("data", {})
    train_run._inputs(tiny_recipe(tiny, data=data, loss=loss), SILENT)


def test_an_image_at_the_end_of_its_turn_is_seen_by_the_template(tiny: World, tmp_path: Path) -> None:
    """What comes between the turns is text that is not trained, and is looked at by what really happens."""
    rows = [record(f"r{n}", [f"{n:02d}.png"], "What is in <image>", "a red patch") for n in range(4)]
    for row in rows:
        row["conversations"][0]["value"] = "What is in <image>"
    data = {"train": str(write(tmp_path / "data.json", rows)), "template": "own"}
    trainer = tiny_trainer(tiny_recipe(tiny, data=data, loss=BASIC), tmp_path / "out")
    batch = trainer.data_collator([trainer.data[row] for row in range(4)])
    model = trainer.model
    columns = batch["input_ids"] == model.config.image_token_id
    with torch.no_grad(), model.basic_term.watching(batch, columns, model.get_input_embeddings()) as seen:
        model.model(
            input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], attention_mask=batch["attention_mask"]
        )
    assert (seen.attention.view(4, -1).sum(-1) > 0).all()


def rows_of(world: World, texts: list[str]) -> Conversations:
    """Rows written out: I an image, t a trained token, p one that is not."""
    image = open_model_folder(world.model).processor.image_token_id
    rows = [
        {
            "id": f"row {number}",
            "images": ["00.png"] * text.count("I"),
            "input_ids": [image if letter == "I" else 5 for letter in text],
            "trained": [letter == "t" for letter in text],
            "length": len(text),
            "truncated": False,
            "number": number + 1,
            "refused": None,
        }
        for number, text in enumerate(texts)
    ]
    return Conversations(datasets.Dataset.from_list(rows, features=FEATURES), None, Path, Path("x.json"), Path())


def unseen(text: str) -> int:
    """Symbol by symbol: images behind which there is text, but none that is not trained."""
    behind = [text[place + 1 :].replace("I", "") for place, letter in enumerate(text) if letter == "I"]
    return sum("t" in rest and "p" not in rest for rest in behind)


@pytest.mark.slow
def test_every_row_is_looked_at(tiny: World) -> None:
    folder = open_model_folder(tiny.model)
    for text in ("ppIpt", "pIptpIpt", "pt", "Ippt", "ptptpI", "tpI"):  # behind the last two there is no text at all
        check_prompts(rows_of(tiny, [text]), folder, PROMPT, "text")
    for text in ("pIt", "It", "pIIttt", "pIptpIt", "ptIIptIt"):
        with pytest.raises(UserError, match=MESSAGE.format(unseen(text), text.count("I"), "'row 0'")):
            check_prompts(rows_of(tiny, [text]), folder, PROMPT, "text")
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("Itp"), size=random.integers(1, 9))) for _ in range(400)]
    wanted, images = sum(map(unseen, texts)), sum(text.count("I") for text in texts)
    first = next(number for number, text in enumerate(texts) if unseen(text))
    with pytest.raises(UserError, match=MESSAGE.format(wanted, images, f"'row {first}'")):
        check_prompts(rows_of(tiny, texts), folder, PROMPT, "text")
    seen = [text for text in texts if not unseen(text)]
    check_prompts(rows_of(tiny, seen), folder, PROMPT, "text")
    with pytest.raises(UserError, match=rf"such as that of 'row {len(seen) - 5}'"):  # of a split, too
        chosen = rows_of(tiny, [*seen, "pIt"])
        picked = chosen.train.select(range(5, len(chosen.train)))
        renamed = picked.map(lambda row, number: {"id": f"row {number}"}, with_indices=True)
        check_prompts(Conversations(renamed, None, Path, Path("x.json"), Path()), folder, PROMPT, "text")
