"""What a push has written, as others read it: row for row, by programs that know nothing of this package."""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import duckdb
import fsspec
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from packaging.version import Version

from sea_pipeline import LabelStore, open_labels
from sea_pipeline.hub import by_word
from sea_pipeline.hub.by_word import write_by_word
from sea_pipeline.hub.card import BEGIN, END
from sea_pipeline.hub.push import push
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.parquet import open_parquet
from tests.hub.conftest import NAME
from tests.hub.stand_in import Hub
from tests.support.kills import killed_around
from tests.support.planted_targets import teach
from tests.support.table_readers import _plain
from tests.support.world import COLOURS, Label, draw_folder

pytestmark = [
    pytest.mark.usefixtures("one_thread", "no_long_waits"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's own
]
LabelsByImage = dict[tuple[str, str], tuple[float, list[tuple[int, int]]]]
"""By word and image: the highest score, and the cells."""
PHRASES = ["zèbre à rayures", "it's", 'a "quoted" one', "日本", "a|b `c` <d> *e* [f](g) $h$", "Zebra", "zebra crossing"]


@pytest.fixture
def loading(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """`datasets` means the stand-in, and keeps nothing; its bars are silent."""
    if Version(datasets.__version__) < Version("5.1"):
        pytest.skip("datasets older than 5.1 has no type for 32 bytes")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hf"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def by_hand(store: LabelStore) -> LabelsByImage:
    """The same, patch by patch."""
    found: dict[tuple[str, str], list[tuple[float, tuple[int, int]]]] = defaultdict(list)
    for image in store:
        labels = store[image]
        for patch in range(len(labels.word_ids)):
            for word, score in zip(labels.word_ids[patch], labels.scores[patch], strict=True):
                if word >= 0:
                    found[store.words[word], image].append((float(score), divmod(patch, store.grid[1])))
    return {key: (max(score for score, _ in held), [cell for _, cell in held]) for key, held in found.items()}


def in_tables(rows: Any) -> LabelsByImage:
    keys = [(row["word"], row["image_id"]) for row in rows]
    assert len(set(keys)) == len(keys)
    return {
        (row["word"], row["image_id"]): (
            row["score"],
            list(zip(map(int, row["cell_rows"]), map(int, row["cell_columns"]), strict=True)),
        )
        for row in rows
    }


@pytest.mark.slow
@pytest.mark.parametrize(("per_file", "per_block"), [(1 << 28, 1 << 22), (36, 36), (110, 20), (73, 1), (1, 1)])
def test_labels_by_word_are_those_of_the_patches(labels: Path, tmp_path: Path, per_file: int, per_block: int) -> None:
    """In one file and in several, sorted at once and in runs that are merged."""
    store = open_labels(labels)
    heard: list[int] = []
    paths = write_by_word(store, tmp_path / "x", heard.append, labels_per_file=per_file, labels_per_block=per_block)
    images = max(1, per_file // 36)
    assert len(paths) == -(-len(store) // images)
    assert sum(heard) == len(store)
    tables = [open_parquet(path).read() for path in paths]
    assert in_tables([row for table in tables for row in table.to_pylist()]) == by_hand(store)
    for number, table in enumerate(tables):
        assert table.schema.equals(by_word.SCHEMA)
        words, ids = table["word"].to_pylist(), store.ids[number * images : (number + 1) * images]
        keys = [
            (word.encode(), ids.index(image)) for word, image in zip(words, table["image_id"].to_pylist(), strict=True)
        ]
        assert keys == sorted(keys)
    assert not list((tmp_path / "x" / ".tmp").iterdir())


def test_a_word_is_found_in_its_row_groups_alone(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_word, "_ROWS_PER_GROUP", 5)
    (path,) = write_by_word(open_labels(labels), tmp_path / "x")
    metadata = pq.read_metadata(path)
    ranges = [metadata.row_group(group).column(0).statistics for group in range(metadata.num_row_groups)]
    holding = [each for each in ranges if each.min <= "grey" <= each.max]
    assert (len(ranges) > 5, len(holding) <= 3) == (True, True)


def test_a_kill_leaves_whole_files_and_they_are_kept(labels: Path, tmp_path: Path) -> None:
    store = open_labels(labels)
    expected = [path.read_bytes() for path in write_by_word(store, tmp_path / "whole", labels_per_file=100)]
    assert len(expected) == 5
    with killed_around(by_word, "_write", 3, before=False):
        write_by_word(store, tmp_path / "x", labels_per_file=100)
    files = sorted((tmp_path / "x").glob("*.parquet"))
    assert [path.read_bytes() for path in files] == expected[:2]
    again = write_by_word(store, tmp_path / "x", labels_per_file=100)
    assert [path.read_bytes() for path in again] == expected


def test_without_labels_there_is_none(label: Label, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 2)
    for path in photos.rglob("*.png"):
        path.write_bytes(b"bad")
    label(images=str(photos), max_bad=1.0)
    assert write_by_word(open_labels(tmp_path / "labels"), tmp_path / "x") == []


def rows_of(paths: list[Path]) -> list[dict[str, Any]]:
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A reader's rows, with lists, bytes and missing values as Python's own."""
    return [
        {key: _plain(row[key], value) for key, value in like.items()} for row, like in zip(found, wanted, strict=True)
    ]


def test_datasets_reads_every_config_row_for_row(labels: Path, hub: Hub, loading: None) -> None:
    push(labels, NAME)
    expected = {
        "labels": rows_of(sorted((labels / "labels").iterdir())),
        "word_list": rows_of([labels / "words.parquet"]),
        "bad_images": rows_of(sorted((labels / "quarantine").iterdir())),
    }
    assert datasets.get_dataset_config_names(NAME) == ["labels", "by_word", "word_list", "bad_images"]
    for name, wanted in expected.items():
        for streaming in (False, True):
            found = list(datasets.load_dataset(NAME, name, split="train", streaming=streaming))
            assert alike(found, wanted) == wanted
    assert list(datasets.load_dataset(NAME, split="train")["image_id"]) == open_labels(labels).ids
    assert in_tables(datasets.load_dataset(NAME, "by_word", split="train")) == by_hand(open_labels(labels))


def test_the_lines_of_the_card_find_a_word(labels: Path, hub: Hub, loading: None, tmp_path: Path) -> None:
    """As they stand there, but for polars', whose own hf:// knows the one hub."""
    push(labels, NAME)
    card = hub.tree(NAME)["README.md"].decode()
    (sql,) = re.findall(r"```sql\n-- DuckDB\n(.*)\n```", card)
    python = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    word = re.search(r"word = '(\w+)'", sql)
    assert word is not None
    assert word[1] in COLOURS
    wanted = {key[1]: value for key, value in by_hand(open_labels(labels)).items() if key[0] == word[1]}
    assert len(wanted) > 3
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("hf", expand_info=True))
        found = connection.sql(sql).fetchall()
    assert {row[0]: (row[1], list(zip(*row[2:], strict=True))) for row in found} == wanted
    opened, by_datasets, by_polars, labels_lines = python
    given: dict[str, Any] = {}
    exec(opened, given)
    assert given["store"].ids == open_labels(labels).ids
    exec(by_datasets, given)
    assert {key[1]: value for key, value in in_tables(given["rows"]).items()} == wanted
    files = fsspec.filesystem("hf")
    for path, data in hub.tree(NAME).items():
        (tmp_path / "repository" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / path).write_bytes(data)
    exec(by_polars.replace(f"hf://datasets/{NAME}", str(tmp_path / "repository")), given)
    assert {key[1]: value for key, value in in_tables(given["rows"].to_dicts()).items()} == wanted
    over_http = [files.open(path) for path in files.glob(f"datasets/{NAME}/by_word/*.parquet")]
    table = polars.scan_parquet(over_http).filter(polars.col("word") == word[1]).collect()  # type: ignore[arg-type]
    assert {key[1]: value for key, value in in_tables(table.to_dicts()).items()} == wanted
    exec(labels_lines, given)
    assert len(given["rows"]) == len(open_labels(labels))


def test_duckdb_and_polars_read_the_labels_row_for_row(labels: Path, hub: Hub) -> None:
    push(labels, NAME)
    wanted = rows_of(sorted((labels / "labels").iterdir()))
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("hf", expand_info=True))
        found = connection.sql(f"SELECT * FROM 'hf://datasets/{NAME}/labels/*.parquet'")
        by_duckdb = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    files = fsspec.filesystem("hf")
    opened: Any = [files.open(path) for path in sorted(files.glob(f"datasets/{NAME}/labels/*.parquet"))]
    by_polars = polars.scan_parquet(opened).collect().to_dicts()
    for found_rows in (by_duckdb, by_polars):
        assert alike(found_rows, wanted) == wanted


@pytest.mark.filterwarnings(
    "ignore:ConjunctiveGraph is deprecated:DeprecationWarning"
)  # of mlcroissant's use of rdflib
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # and of pandas
def test_croissant_is_valid_and_its_records_are_the_rows(
    labels: Path, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import mlcroissant

    push(labels, NAME)
    push(teach(tmp_path / "targets"), "owner/targets")
    for name, kind in ((NAME, "labels"), ("owner/targets", "targets")):
        folder = tmp_path / kind / "repository"
        for path, data in hub.tree(name).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        with caplog.at_level(logging.WARNING):
            found = mlcroissant.Dataset(jsonld=folder / "croissant.json", mapping={"repository": str(folder)})
        assert found.metadata.issues.errors == set()
        warned = [issue for issue in found.metadata.issues.warnings if "license" not in issue]  # its owner's
        assert warned == []
        tables = {f"{kind}": sorted((folder / kind).glob("*.parquet"))}
        if kind == "labels":
            tables |= {"word_list": [folder / "words.parquet"], "by_word": sorted((folder / "by_word").iterdir())}
        assert [one.id for one in found.metadata.record_sets] == list(found_order(kind))
        for table, paths in tables.items():
            wanted = rows_of(paths)
            for record, row in zip(found.records(table), wanted, strict=True):
                for field, value in record.items():
                    like = row[field.rpartition("/")[2]]
                    assert np.array_equal(value.decode() if isinstance(value, bytes) else value, like), field
    assert not [record for record in caplog.records if "not standard" in record.message]


def found_order(kind: str) -> tuple[str, ...]:
    return ("labels", "word_list", "by_word") if kind == "labels" else ("targets",)


def test_the_card_says_what_it_is(command: Any, labels: Path, hub: Hub) -> None:
    push(labels, NAME)
    card = DatasetCard(hub.tree(NAME)["README.md"].decode())
    inspected = json.loads(command("inspect", labels, "--json")[1])
    data = card.data.to_dict()
    assert data.keys() == {"annotations_creators", "configs", "pretty_name", "size_categories", "tags"}
    assert (data["size_categories"], data["annotations_creators"]) == ("n<1K", "machine-generated")
    assert [config["config_name"] for config in data["configs"] if config.get("default")] == ["labels"]
    for text in (
        "| encoder | packaged |", "| sign of the similarity | + |", "| n, labels of a patch at most | 3 |",
        f"| labels | {inspected['labels']:,} |", f"| {inspected['most_frequent'][0]['word']} |",
        f"| words of the list that are used | {inspected['words_used']} (", "![", "(figures.png)", "## Terms",
        "| word list | 8 words, sha256 ", "Images: from photos.", "| images that could not be read | 1 |",
    ):  # fmt: skip
        assert text in card.text, text
    assert str(labels.parent) not in str(card)
    with fsspec.filesystem("hf").open(f"datasets/{NAME}/figures.png") as file:
        assert file.read(4) == b"\x89PNG"


def test_what_its_owner_writes_into_the_card_stays(label: Label, labels: Path, hub: Hub, tmp_path: Path) -> None:
    push(labels, NAME)
    card = hub.tree(NAME)["README.md"].decode()
    mine = card.replace("---\n", "---\nlicense: cc-by-4.0\n", 1).replace("pretty_name: ", "pretty_name: My own ")
    mine = mine.replace(BEGIN, f"Please cite us.\n\n{BEGIN}").replace(END, f"{END}\n\nThanks: é 🙂")
    hub.put(NAME, {"README.md": mine.encode()})
    draw_folder(tmp_path / "photos" / "more", 5, seed=3)
    label(images=str(tmp_path / "photos"), extend=True, max_bad=1.0)
    push(labels, NAME)
    text = hub.tree(NAME)["README.md"].decode()
    now = DatasetCard(text)
    assert (now.data.license, now.data.pretty_name[:6]) == ("cc-by-4.0", "My own")
    assert now.text.lstrip().startswith("Please cite us.")
    assert now.text.rstrip().endswith("Thanks: é 🙂")
    assert ("| images | 15 |" in text, "| images | 10 |" in text) == (True, False)
    assert json.loads(hub.tree(NAME)["croissant.json"])["license"] == "cc-by-4.0"
    hub.put(NAME, {"README.md": b"# all my own words\n", "manifest.json": None})
    push(labels, NAME)
    text = hub.tree(NAME)["README.md"].decode()
    assert text.endswith("# all my own words\n")
    assert DatasetCard(text).data.to_dict()["configs"]


def test_phrases_are_words_in_the_card_and_in_every_reader(
    label: Label, hub: Hub, loading: None, tmp_path: Path
) -> None:
    photos = draw_folder(tmp_path / "photos", 6)
    (tmp_path / "phrases.txt").write_text("\n".join(PHRASES))
    label(images=str(photos), wordlist=str(tmp_path / "phrases.txt"), top_n=7, shard_size=4)
    store = open_labels(tmp_path / "labels")
    push(tmp_path / "labels", NAME)
    wanted = by_hand(store)
    assert {word for word, _ in wanted} >= {PHRASES[1], PHRASES[4]}
    card = hub.tree(NAME)["README.md"].decode()
    assert r"| a\|b \`c\` \<d\> \*e\* \[f\](g) \$h\$ |" in card
    assert in_tables(datasets.load_dataset(NAME, "by_word", split="train")) == wanted
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("hf", expand_info=True))
        (sql,) = re.findall(r"```sql\n-- DuckDB\n(.*)\n```", card)
        assert len(connection.sql(sql).fetchall()) > 0
        for word in PHRASES:
            rows = connection.execute(
                f"SELECT image_id FROM 'hf://datasets/{NAME}/by_word/*.parquet' WHERE word = ?", [word]
            ).fetchall()
            assert sorted(row[0] for row in rows) == sorted(image for held, image in wanted if held == word)


def test_an_unfinished_push_has_no_card_that_promises(labels: Path, hub: Hub) -> None:
    import huggingface_hub

    with killed_around(huggingface_hub.HfApi, "create_commit", 2, before=True):
        push(labels, NAME)
    assert hub.tree(NAME).keys() & {"README.md", "croissant.json", "manifest.json"} == set()


def test_the_ledger_of_a_dataset_says_how_far_it_is(command: Any, labels: Path, hub: Hub) -> None:
    push(labels, NAME)
    url = f"hf://datasets/{NAME}"
    status = json.loads(command("status", url, "--json")[1])
    assert (status["finished"], status["images_done"], status["images_bad"]) == (True, 10, 1)
    assert command("verify", url)[0] == 0
    ours, theirs = (json.loads(command("inspect", at, "--json")[1]) for at in (url, labels))
    assert ours == theirs
    assert command("report", url, "--out", labels.parent / "report.html")[0] == 0
    assert NAME.encode() in (labels.parent / "report.html").read_bytes()
    assert Ledger.open(open_labels(url).path).dataset == Ledger.open(labels).dataset
