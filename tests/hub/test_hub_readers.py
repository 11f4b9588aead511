"""What a push has written, as others read it: row for row, by programs that know nothing of this package."""

import html
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
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
from markdown_it import MarkdownIt
from packaging.version import Version

from sea_pipeline import LabelStore, open_labels
from sea_pipeline.hub import by_word
from sea_pipeline.hub.by_word import write_by_word
from sea_pipeline.hub.card import BEGIN, END, plain
from sea_pipeline.hub.push import push
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.parquet import open_parquet
from tests.hub.helpers import NAME, URL, clients_own
from tests.hub.stand_in import Hub
from tests.support.damage import flip
from tests.support.kills import killed_around
from tests.support.paths import ROOT
from tests.support.planted_targets import teach
from tests.support.table_readers import _plain
from tests.support.world import COLOURS, Label, draw_folder

pytestmark = clients_own
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


@pytest.fixture
def over_the_hub() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection of DuckDB that reads hf:// from the stand-in."""
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("hf", expand_info=True))
        yield connection


def into_folder(tree: dict[str, bytes], folder: Path) -> Path:
    """A repository's files, as a clone has them."""
    for path, data in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


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


@pytest.mark.slow
def test_crops_are_told_from_images(label: Label, hub: Hub, command: Any, tmp_path: Path) -> None:
    label(images=str(draw_folder(tmp_path / "photos", 3)), crops=2)
    folder, store = tmp_path / "labels", open_labels(tmp_path / "labels")
    whole = [name for name in store if "#" not in name]
    (path,) = write_by_word(store, tmp_path / "x")
    wanted = {key: held for key, held in by_hand(store).items() if key[1] in whole}
    assert in_tables(open_parquet(path).read().to_pylist()) == wanted
    (sql,) = re.findall(r"SELECT \* .*;", (ROOT / "docs" / "label-format.md").read_text())
    rows = duckdb.sql(sql.replace("runs/labels/mine", str(folder))).fetchall()
    assert [row[0] for row in rows] == whole
    assert "of 9 planned (photos, and up to 2 crops of each)" in command("status", folder)[1]
    assert "9 (3 photos, 6 crops of them)" in command("inspect", folder)[1]
    assert json.loads(command("inspect", folder, "--json")[1])["crops"] == 6
    push(folder, NAME)
    card = hub.tree(NAME)["README.md"].decode()
    for said in ("of 9 images and crops of them: for", "| images and crops of them | 9 |", "whose ids end in `#crop`"):
        assert said in card
    assert "one row an image or crop of one" in hub.tree(NAME)["croissant.json"].decode()


def test_a_word_is_found_in_its_row_groups_alone(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_word, "_ROWS_PER_GROUP", 5)
    (path,) = write_by_word(open_labels(labels), tmp_path / "x")
    metadata = pq.read_metadata(path)
    ranges = [metadata.row_group(group).column(0).statistics for group in range(metadata.num_row_groups)]
    holding = [each for each in ranges if each.min <= "grey" <= each.max]
    assert (len(ranges) > 5, len(holding) <= 3) == (True, True)


def test_a_kill_leaves_whole_files_and_they_are_kept(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one that is damaged meanwhile."""
    store = open_labels(labels)
    expected = [path.read_bytes() for path in write_by_word(store, tmp_path / "whole", labels_per_file=100)]
    assert len(expected) == 5
    with killed_around(by_word, "_write", 3, before=False):
        write_by_word(store, tmp_path / "x", labels_per_file=100)
    files = sorted((tmp_path / "x").glob("*.parquet"))
    assert [path.read_bytes() for path in files] == expected[:2]
    flip(files[1], len(expected[1]) // 2)
    plain, made = by_word._write, []
    monkeypatch.setattr(by_word, "_write", lambda *given: made.append(1) or plain(*given))
    again = write_by_word(store, tmp_path / "x", labels_per_file=100)
    assert [path.read_bytes() for path in again] == expected
    assert len(made) == 4


def rows_of(paths: list[Path]) -> list[dict[str, Any]]:
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A reader's rows, with lists, bytes and missing values as Python's own."""
    return [
        {key: _plain(row[key], value) for key, value in like.items()} for row, like in zip(found, wanted, strict=True)
    ]


@pytest.mark.usefixtures("pushed", "loading")
def test_datasets_reads_every_config_row_for_row(labels: Path) -> None:
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


@pytest.mark.usefixtures("pushed", "loading")
def test_the_lines_of_the_card_find_a_word(
    labels: Path, hub: Hub, over_the_hub: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    """As they stand there, but for polars', whose own hf:// knows the one hub."""
    card = hub.tree(NAME)["README.md"].decode()
    (sql,) = re.findall(r"```sql\n-- DuckDB\n(.*)\n```", card)
    python = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    word = re.search(r"word = '(\w+)'", sql)
    assert word is not None
    assert word[1] in COLOURS
    wanted = {key[1]: value for key, value in by_hand(open_labels(labels)).items() if key[0] == word[1]}
    assert len(wanted) > 3
    found = over_the_hub.sql(sql).fetchall()
    assert {row[0]: (row[1], list(zip(*row[2:], strict=True))) for row in found} == wanted
    opened, by_datasets, by_polars, labels_lines = python
    given: dict[str, Any] = {}
    exec(opened, given)
    assert given["store"].ids == open_labels(labels).ids
    exec(by_datasets, given)
    assert {key[1]: value for key, value in in_tables(given["rows"]).items()} == wanted
    files = fsspec.filesystem("hf")
    clone = into_folder(hub.tree(NAME), tmp_path / "repository")
    exec(by_polars.replace(URL, str(clone)), given)
    assert {key[1]: value for key, value in in_tables(given["rows"].to_dicts()).items()} == wanted
    over_http = [files.open(path) for path in files.glob(f"datasets/{NAME}/by_word/*.parquet")]
    table = polars.scan_parquet(over_http).filter(polars.col("word") == word[1]).collect()  # type: ignore[arg-type]
    assert {key[1]: value for key, value in in_tables(table.to_dicts()).items()} == wanted
    exec(labels_lines, given)
    assert len(given["rows"]) == len(open_labels(labels))


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")  # mlcroissant's, of rdflib
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # and of pandas
@pytest.mark.usefixtures("pushed")
def test_croissant_is_valid_and_its_records_are_the_rows(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import mlcroissant

    push(teach(tmp_path / "targets"), "owner/targets")
    for name, kind in ((NAME, "labels"), ("owner/targets", "targets")):
        folder = into_folder(hub.tree(name), tmp_path / kind / "repository")
        with caplog.at_level(logging.WARNING):
            found = mlcroissant.Dataset(jsonld=folder / "croissant.json", mapping={"repository": str(folder)})
        assert found.metadata.issues.errors == set()
        assert [issue for issue in found.metadata.issues.warnings if "license" not in issue] == []  # its owner's
        tables = {kind: sorted((folder / kind).glob("*.parquet"))}
        if kind == "labels":
            tables |= {"word_list": [folder / "words.parquet"], "by_word": sorted((folder / "by_word").iterdir())}
        assert [one.id for one in found.metadata.record_sets] == list(tables)
        for table, paths in tables.items():
            wanted = rows_of(paths)
            for record, row in zip(found.records(table), wanted, strict=True):
                for field, value in record.items():
                    like = row[field.rpartition("/")[2]]
                    assert np.array_equal(value.decode() if isinstance(value, bytes) else value, like), field
    assert not [record for record in caplog.records if "not standard" in record.message]


@pytest.mark.usefixtures("pushed")
def test_the_card_says_what_it_is(command: Any, labels: Path, hub: Hub) -> None:
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


@pytest.mark.parametrize("text", ["a &lt;b&gt; c", "R&D", "&#42;", "&amp;amp;", "*a* _b_ [c](d) <e> `f` |", "A\\B"])
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    rendered = MarkdownIt("commonmark").enable("table").render(plain(text))
    assert html.unescape(re.sub("<[^>]+>", "", rendered)).strip() == text


@pytest.mark.usefixtures("pushed")
def test_what_its_owner_writes_into_the_card_stays(labels: Path, hub: Hub, extend: Callable[[int], None]) -> None:
    card = hub.tree(NAME)["README.md"].decode()
    ours = DatasetCard(card).data
    mine = card.replace("---\n", "---\nlicense: cc-by-4.0\n", 1).replace("pretty_name: ", "pretty_name: My own ")
    mine = mine.replace("n<1K", "1M<n<10M").replace("config_name: labels", "config_name: outdated")
    mine = mine.replace(BEGIN, f"Please cite us.\n\n{BEGIN}").replace(END, f"{END}\n\nThanks: é 🙂")
    hub.put(NAME, {"README.md": mine.encode()})
    extend(5)
    push(labels, NAME)
    text = hub.tree(NAME)["README.md"].decode()
    now = DatasetCard(text)
    assert (now.data.license, now.data.pretty_name[:6]) == ("cc-by-4.0", "My own")
    assert (now.data.configs, now.data.size_categories) == (ours.configs, ours.size_categories), "up to date"
    assert now.text.lstrip().startswith("Please cite us.")
    assert now.text.rstrip().endswith("Thanks: é 🙂")
    assert ("| images | 15 |" in text, "| images | 10 |" in text) == (True, False)
    assert json.loads(hub.tree(NAME)["croissant.json"])["license"] == "cc-by-4.0"


@pytest.mark.usefixtures("loading")
def test_phrases_are_words_in_the_card_and_in_every_reader(
    label: Label, hub: Hub, over_the_hub: duckdb.DuckDBPyConnection, tmp_path: Path
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
    (sql,) = re.findall(r"```sql\n-- DuckDB\n(.*)\n```", card)
    assert len(over_the_hub.sql(sql).fetchall()) > 0
    for word in PHRASES:
        query = f"SELECT image_id FROM '{URL}/by_word/*.parquet' WHERE word = ?"
        images = [row[0] for row in over_the_hub.execute(query, [word]).fetchall()]
        assert sorted(images) == sorted(image for held, image in wanted if held == word)


@pytest.mark.usefixtures("pushed")
def test_the_ledger_of_a_dataset_says_how_far_it_is(command: Any, labels: Path) -> None:
    status = json.loads(command("status", URL, "--json")[1])
    assert (status["finished"], status["images_done"], status["images_bad"]) == (True, 10, 1)
    assert command("verify", URL)[0] == 0
    ours, theirs = (json.loads(command("inspect", at, "--json")[1]) for at in (URL, labels))
    assert ours == theirs
    assert command("report", URL, "--out", labels.parent / "report.html")[0] == 0
    assert NAME.encode() in (labels.parent / "report.html").read_bytes()
    assert Ledger.open(open_labels(URL).path).dataset == Ledger.open(labels).dataset
