"""What an attached model's tokens say, and what the right photo is worth to it."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sea_pipeline.core.errors import UserError
from tests.trainer.attach.families import tiny
from tests.trainer.attach.worlds import Pictures

NAMES = [["wide.png"], ["other.png"]]
"""Two photos of as many visual tokens."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "llava_next", "smolvlm"])
def test_planted_tokens_hit_their_labels(name: str, pictures: Pictures, attached: Any) -> None:
    """Visual tokens that are their labels' words hit all of them and lie on words; of another photo they do not."""
    made = tiny(name)
    one = attached(made, labels=pictures.open(), sea={})
    batch = made.batch(pictures.batch(NAMES))
    made.model.eval()
    with torch.no_grad():
        made.model(**batch)
    one.loss(NAMES)
    kept, flat = one.kept(), [each for some in NAMES for each in some]
    assert kept.visual is not None
    assert one.words is not None
    words = one.words.word_embeddings(torch.arange(8), one.watch.embed)
    planted, start = kept.visual.clone(), 0
    for each, laid in zip(flat, one.laid(kept, flat), strict=True):
        for tile in laid.tiles:
            first = torch.from_numpy(one.labels_on(each, tile).word_ids[:, 0]).long()
            planted[torch.from_numpy(tile.cells) + start] = words[first]
        start += laid.tokens
    before = one.metrics()
    kept.visual = planted
    found = one.metrics()
    assert found["label_hit@1"] == found["label_hit@10"] == 1
    assert found["gap"] == pytest.approx(0, abs=1e-5)
    assert before["label_hit@1"] < 0.6
    assert before["gap"] > 0.1
    said = one.nearest_words(NAMES)
    for each, tiles, laid in zip(flat, said, one.laid(kept, flat), strict=True):
        for shown, tile in zip(tiles, laid.tiles, strict=True):
            best = one.labels_on(each, tile).word_ids[:, 0]
            assert shown.words == [pictures.open().words[word] for word in best]
            assert (shown.grid, shown.box, set(shown.hits)) == (tile.grid, tile.box, {True})
    assert not all(hit for tile in one.nearest_words(flat[::-1])[0] for hit in tile.hits), "of the other photo"
    kept.ids = flat[::-1]
    assert one.metrics()["label_hit@1"] < 0.8
    kept.visual[0, 0] = torch.nan
    assert all(np.isnan(one.metrics()[each]) for each in ("label_hit@1", "label_hit@10", "gap"))
    with pytest.raises(UserError, match=r"^attached.nearest_words: .*expected numbers as visual tokens"):
        one.nearest_words(flat[::-1])


def test_the_right_photo_is_against_the_other_ones_tokens(pictures: Pictures, attached: Any) -> None:
    made = tiny("qwen3_vl")
    one = attached(made, labels=pictures.open(), sea={})
    samples = pictures.batch(NAMES)
    batch = made.batch(samples)
    read: list[int] = []
    heard = made.model.lm_head.register_forward_hook(lambda _, given, __: read.append(given[0].shape[1]))
    found = one.metrics([batch | {"image_ids": NAMES}])
    heard.remove()
    assert read == [int((batch["labels"][:, 1:] != -100).any(0).sum())] * 2, "logits of what is trained alone"

    def nats(given: dict[str, Any]) -> np.ndarray:
        made.model.eval()
        with torch.no_grad():
            logits = made.model(**{key: value for key, value in given.items() if key != "labels"}).logits
        labels = batch["labels"][:, 1:].clone()
        costs = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
        return costs.double().numpy()

    swapped = made.batch([(samples[1][0], samples[0][1]), (samples[0][0], samples[1][1])])
    trained = int((batch["labels"][:, 1:] != -100).sum())
    own, other = nats(batch).sum() / trained, nats(swapped).sum() / trained
    assert found["lm_loss"] == pytest.approx(own, rel=1e-5)
    assert found["lm_loss_other"] == pytest.approx(other, rel=1e-5)
    assert found["right_photo_gain"] == pytest.approx(other - own, abs=1e-5)
    assert own != pytest.approx(other, rel=1e-4)
    alone = one.metrics([batch | {"image_ids": [["wide.png"], ["wide.png"]]}])
    assert "right_photo_gain" not in alone, "a photo is no other one of itself"
    with pytest.raises(UserError, match="expected batches, such as a DataLoader"):
        one.metrics(batch)


def test_labels_that_a_trainer_has_cut_are_measured_alike(pictures: Pictures, attached: Any) -> None:
    """As ms-swift's cuts them, with `logits_to_keep`, to the first trained token of the batch."""
    made = tiny("llava")
    one = attached(made, labels=pictures.open(), sea={})
    batch = made.batch(pictures.batch(NAMES)) | {"image_ids": NAMES}
    batch["labels"][:, :-4] = -100
    cut = batch | {"labels": batch["labels"][:, -5:]}
    assert one.metrics([cut | {"logits_to_keep": 5}]) == one.metrics([batch])
    with pytest.raises(UserError, match=r"labels of the shape of input_ids, \[2, \d+\]; found \[2, 5\]"):
        one.metrics([cut])


def test_a_forward_may_drop_logits_to_keep(pictures: Pictures, attached: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger's do, and so may a user's; with a device map they are asked for the last ones."""
    made = tiny("qwen3_vl")
    one = attached(made, labels=pictures.open(), sea={})
    batch, forward = made.batch(pictures.batch(NAMES)) | {"image_ids": NAMES}, made.model.forward

    def dropping(logits_to_keep: Any = 0, **given: Any) -> Any:
        return forward(**given)

    def lacking(
        input_ids: Any, attention_mask: Any, mm_token_type_ids: Any, pixel_values: Any, image_grid_thw: Any
    ) -> Any:
        return forward(**locals())

    expected = pytest.approx(one.metrics([batch]), rel=1e-5)
    for devices in ({}, {"a": 0, "b": 1}):
        monkeypatch.setattr(made.model, "hf_device_map", devices, raising=False)
        for other in (forward, dropping, lacking):
            monkeypatch.setattr(made.model, "forward", other)
            assert one.metrics([batch]) == expected


def test_nearest_words_are_those_of_labels(pictures: Pictures, attached: Any) -> None:
    made = tiny("llava")
    one = attached(made, basic={"degree": "equal"})
    with torch.no_grad():
        made.model(**made.batch(pictures.batch([["wide.png"]])))
    with pytest.raises(UserError, match=r"nearest_words: expected labels.*labels=open_labels"):
        one.nearest_words(["wide.png"])
