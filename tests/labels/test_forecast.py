"""`plan`: a few images are labelled, and many are forecast from them."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sea_pipeline.labels import stage as label_stage
from sea_pipeline.labels.forecast import ForecastSettings, busiest, forecast
from tests.support.clock import Clock
from tests.support.world import ColourEncoder, draw_folder


def twin_of_busiest(images: int, shard_size: int, workers: int) -> int:
    load = [0] * workers
    for shard, start in enumerate(range(0, images, shard_size)):
        load[shard % workers] += min(shard_size, images - start)
    return max(load)


def test_the_busiest_worker_is_that_of_shards_handed_out_one_by_one() -> None:
    for images in (1, 7, 8, 9, 100, 1023):
        for shard_size in (1, 3, 8, 2048):
            for workers in (1, 2, 3, 5, 64, 2000):
                assert busiest(images, shard_size, workers) == twin_of_busiest(images, shard_size, workers)


def asked(tmp_path: Path, words: Path, **settings: Any) -> ForecastSettings:
    photos = tmp_path / "photos"
    if not photos.exists():
        draw_folder(photos, 5)
    defaults = {"images": str(photos), "wordlist": str(words), "top_n": 3, "device": "cpu", "planned": 10_000}
    return ForecastSettings.of(**(defaults | settings))


def test_hours_follow_from_the_rate_and_the_start(
    encoder: ColourEncoder, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_stage, "_MOST_ENCODE_THREADS", 1)
    found = forecast(asked(tmp_path, words, measure=40, workers=6, price=2.0, shard_size=1000))
    assert (found.measured, found.bad, found.shards) == (40, 0, 10)
    assert [share.workers for share in found.shares] == [1, 2, 4, 6]
    for share, images in zip(found.shares, (10_000, 5_000, 3_000, 2_000), strict=True):
        assert share.hours == pytest.approx((found.start_seconds + images / found.images_per_second) / 3600)
        assert share.cost == pytest.approx(2.0 * share.workers * share.hours)
    assert found.bytes == pytest.approx(10_000 * found.bytes_per_image)
    assert {"decode", "encode", "search", "write"} <= found.seconds_per_image.keys()
    assert found.memory_bytes > 10_000_000
    assert found.words_seconds < found.start_seconds


@pytest.mark.slow
@pytest.mark.parametrize("images", [320, 20])
def test_bytes_are_those_of_a_real_run(
    label: Any, encoder: ColourEncoder, words: Path, tmp_path: Path, images: int
) -> None:
    """Of few images, too, though they are measured again and again."""
    photos = str(draw_folder(tmp_path / "many", images))
    found = forecast(asked(tmp_path, words, images=photos, measure=160))
    labelled = label(images=photos, shard_size=2048)
    assert found.bytes_per_image == pytest.approx(labelled.ledger.done().bytes / images, rel=0.15)


def test_every_thread_has_its_part_of_what_is_measured(
    encoder: ColourEncoder, words: Path, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    threads(5)
    assert forecast(asked(tmp_path, words, measure=16)).measured == 4 * 5 * label_stage.BATCH_SIZES["cpu"]


def test_images_are_spread_over_the_input_and_bad_ones_are_told(
    encoder: ColourEncoder, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_stage, "_MOST_ENCODE_THREADS", 1)
    photos = draw_folder(tmp_path / "photos", 32)
    for path in sorted(photos.rglob("*.png"))[16:]:
        path.write_bytes(b"")
    assert forecast(asked(tmp_path, words, measure=16)).bad == 16  # of 32, a batch's length four times


def test_what_cannot_be_measured_is_one_line(command: Any, words: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    code, _, stderr = command(
        "plan", "--images", 10, "--sample", tmp_path / "photos", "--wordlist", words, "--top-n", 3
    )
    embedding, _, stderr = stderr.partition("\n")
    assert embedding.startswith("embedding 8 words once; kept in ")
    assert (code, stderr.count("\n")) == (1, 1)
    assert re.search(r"none of \d+ images could be labelled", stderr)
    assert command("plan", "--images", 0)[0] == 2


def test_the_command_prints_a_table_or_json(command: Any, words: Path, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 5)
    arguments = ("plan", "--images", 558_128, "--sample", photos, "--wordlist", words, "--top-n", 3, "--workers", 4)
    code, stdout, stderr = command(*arguments)
    assert (code, stderr) == (0, f"embedding 8 words once; kept in {tmp_path / 'cache' / 'words'}\n")
    assert "558,128 images in 273 shards" in stdout
    assert "cost" not in stdout
    found = json.loads(command(*arguments, "--price", 1.5, "--json")[1])
    assert [share["workers"] for share in found["shares"]] == [1, 2, 4]
    assert found["shares"][0]["cost"] > 0


def test_loading_the_encoder_is_not_embedding_words(
    command: Any, encoder: ColourEncoder, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, clock = encoder.words, Clock()

    def slowly(words: Sequence[str], advance: Callable[[int], None]) -> torch.Tensor:
        clock.passes(12)
        return plain(words, advance)

    monkeypatch.setattr("sea_pipeline.labels.forecast.time", clock)
    monkeypatch.setattr(encoder, "load", lambda: clock.passes(5))
    monkeypatch.setattr(encoder, "words", slowly)
    arguments = ("plan", "--images", 9, "--sample", draw_folder(tmp_path / "photos", 5), "--wordlist", words)
    arguments += ("--top-n", 3, "--measure", 16)
    assert re.search(
        "starting +17 s for each worker, 12 s of them to embed words, which are kept", command(*arguments)[1]
    )
    found = json.loads(command(*arguments, "--json")[1])
    assert found["words_seconds"] < 0.5
    assert found["start_seconds"] == pytest.approx(5, abs=0.5)
    assert "to embed words" not in command(*arguments)[1]
