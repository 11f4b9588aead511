"""Labels by word for very many images: how long sorting takes, and a query. `python -m tests.bench.by_word FOLDER`

The images are names for the rows of a finished folder of labels, again and again, so that words are as frequent as they
are there; the files are those that `sea-pipeline push` sends.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars

from sea_pipeline import open_labels
from sea_pipeline.hub.by_word import write_by_word
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.join.folder import begin_folder, finish_folder, open_sources
from sea_pipeline.labels.format import ShardWriter, label_rows
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.plan import plan_sha256, write_plan
from sea_pipeline.storage.parquet import open_parquet, shard_footer
from sea_pipeline.storage.publish import publish

SHARD = 2048


def repeated(folder: Path, out: Path, count: int) -> Ledger:
    """A folder of labels of `count` images, which have the rows of another folder's first shard in turn."""
    (source,) = open_sources([folder])
    patches = source.dataset.fields["grid"][0] * source.dataset.fields["grid"][1]
    rows = list(label_rows(open_parquet(source.shard_path(0)).read(), source.dataset.fields["top_n"]))
    samples = [Sample(f"{number // 1000:04d}/{number:07d}.jpg", f"{number:07d}.jpg") for number in range(count)]
    dataset = source.dataset.model_copy(
        update={
            "plan": plan_sha256(samples), "images": count, "shards": -(-count // SHARD), "shard_size": SHARD,
            "files": [], "parts": [],
        }
    )  # fmt: skip
    plans = {"plan.parquet": lambda path: write_plan(path, samples, SHARD)}
    ledger = begin_folder(out, dataset, plans, source.root / "words.txt", samples)
    footer = shard_footer(source.shard_path(0))
    for number in range(dataset.shards):
        some = range(number * SHARD, min(count, (number + 1) * SHARD))
        with (
            publish(ledger.shard_path(number), out) as scratch,
            ShardWriter(scratch, patches, source.dataset.fields["top_n"]) as writer,
        ):
            for image in some:
                writer.add(rows[image % len(rows)]._replace(image_id=samples[image].image_id))
            writer.set_footer(footer | {"shard": number, "patches": len(some) * patches})
        ledger.record(
            number, rows=len(some), bad=0, reasons={}, seconds={}, first_image_sha256=rows[0].image_sha256.hex(),
            peak_memory_bytes=0, attempt=1,
        )  # fmt: skip
    finish_folder(ledger, [source])
    return ledger


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = action()
    return time.perf_counter() - begun, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--word", default="zebra")
    parser.add_argument("--scratch", type=Path, default=None)
    asked = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(dir=asked.scratch))
    try:
        written, _ = timed(lambda: repeated(asked.folder, scratch / "labels", asked.count))
        store = open_labels(scratch / "labels", verify=False)
        before = time.process_time()
        seconds, paths = timed(lambda: write_by_word(store, scratch / "by_word"))
        processor, memory = time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        files = f"{scratch}/by_word/*.parquet"
        sql = f"SELECT image_id, score, cell_rows, cell_columns FROM '{files}' WHERE word = '{asked.word}'"
        duck = [timed(lambda: duckdb.connect().sql(sql).fetchall()) for _ in range(3)]
        polar = [
            timed(lambda: polars.scan_parquet(files).filter(polars.col("word") == asked.word).collect())
            for _ in range(3)
        ]
        shards = f"{scratch}/labels/labels/*.parquet"
        scan = f"SELECT image_id FROM '{shards}' WHERE list_contains(words, {store.words.index(asked.word)})"
        print(
            json.dumps(
                {
                    "images": asked.count,
                    "label_bytes": sum(file["bytes"] for file in store.manifest["shards"]),
                    "by_word_bytes": sum(path.stat().st_size for path in paths),
                    "files": len(paths),
                    "write_labels_seconds": round(written, 1),
                    "by_word_seconds": round(seconds, 1),
                    "by_word_processor_seconds": round(processor, 1),
                    "by_word_peak_memory_bytes": memory,
                    "rows": duckdb.connect().sql(f"SELECT count(*) FROM '{files}'").fetchall()[0][0],
                    "found": len(duck[0][1]),
                    "duckdb_seconds": [round(each[0], 3) for each in duck],
                    "polars_seconds": [round(each[0], 3) for each in polar],
                    "shards_scanned_by_duckdb_seconds": round(timed(lambda: duckdb.sql(scan).fetchall())[0], 2),
                },
                indent=2,
            )
        )
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
