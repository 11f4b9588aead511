"""What dask costs: two workers of one thread each beside one process of two threads, on the same photos."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from sea_pipeline.execution.cluster_settings import WorkerSettings
from sea_pipeline.labels.run import LabelSettings, label_images
from tests.bench.bench_label import crops
from tests.bench.measure import Figure

COUNT, SHARD_SIZE, REPEATS = 192, 16, 3
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def figures() -> Iterator[Figure]:
    """dask.efficiency: the rate of two workers over that of one process; starting and loading do not count."""
    with tempfile.TemporaryDirectory() as scratch:
        photos = crops(Path(scratch) / "photos", COUNT)
        rates: dict[str, list[float]] = {"alone": [], "workers": []}
        for number in range(REPEATS + 1):
            for name, found in rates.items():
                out = Path(scratch) / f"{name}{number}"
                found.append(_rate(photos, out, name, 2 if name == "alone" else 1))
        alone, workers = (sorted(found[1:])[REPEATS // 2] for found in rates.values())  # the first ones embed words
    yield Figure(
        "dask.efficiency",
        workers / alone,
        "x",
        f"one process of two threads {alone:.2f} images/s; two workers of one thread {workers:.2f} images/s",
    )


def _rate(photos: Path, out: Path, name: str, threads: int) -> float:
    environment = os.environ | dict.fromkeys(_THREADS, str(threads))
    code = f"from tests.bench.bench_workers import measure; measure({str(photos)!r}, {str(out)!r}, {name!r})"
    # A file, not a pipe: the workers' processes keep what they inherit open for as long as they live.
    with tempfile.TemporaryFile("w+") as said:
        subprocess.run([sys.executable, "-c", code], env=environment, stdout=said, check=True)
        said.seek(0)
        return float(said.read())


def measure(photos: str, out: str, name: str) -> None:
    """Labels the photos; prints images per second from the end of the first shards to the end of the last ones."""
    crew = WorkerSettings(workers=2, dashboard=False) if name == "workers" else WorkerSettings()
    settings = LabelSettings.of(
        images=photos, out=Path(out), shard_size=SHARD_SIZE, device="cpu", crew=crew, probe=False
    )
    print(
        steady_rate([commit.finished for commit in label_images(settings).ledger.commits()], 2 if crew.workers else 1)
    )


def steady_rate(finished: list[str], workers: int) -> float:
    """Images per second after each worker's first shard: those pay for loading and warming up."""
    times = sorted(datetime.fromisoformat(moment) for moment in finished)
    spent = (times[-1] - times[workers - 1]).total_seconds()
    return (len(times) - workers) * SHARD_SIZE / spent
