"""The papers' rows by name: what is listed, shown and refused, and that every command that is printed parses."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import typer.main

from sea_pipeline.cli import terminal
from sea_pipeline.cli.app import app
from sea_pipeline.core.errors import UserError
from tests.support.paths import ROOT
from tests.support.refused import ran, refuses
from trainer.recipes.files import read_recipes
from trainer.recipes.names import builtin_recipes, recipe_names
from trainer.recipes.paper_rows import named_recipes, paper_rows
from trainer.recipes.recipe import Recipe

ROWS = paper_rows()
RECIPES = sorted((ROOT / "jobs").glob("*.yaml"), key=lambda path: path.stem)
SIZES = {
    "sea-table1": 5,
    "sea-table2": 14,
    "sea-table3": 3,
    "sea-figure3": 3,
    "basic-table1": 4,
    "basic-table2": 4,
    "basic-table3": 10,
    "basic-table4": 5,
    "basic-figure6": 8,
}
"""Rows of each table that its paper's authors trained, counted in the papers."""


def header(path: Path) -> str:
    """The comment that a recipe begins with."""
    lines = path.read_text().splitlines()
    return "\n".join(line.removeprefix("#") for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])


def commands(text: str) -> Iterator[str]:
    """Lines that are commands, as README, the recipes and `sea-pipeline recipes` write them."""
    for line in text.splitlines():
        if line.strip().startswith(("sea-pipeline ", "torchrun ")):
            yield line.strip()


def parse(line: str) -> dict[str, Any]:
    """What the command line makes of a command, without running it; raises where it is none."""
    words = shlex.split(line.partition(" | ")[0], comments=True)
    words = words[words.index("sea_pipeline") + 1 :] if words[0] == "torchrun" else words[1:]
    command: Any = typer.main.get_command(app)
    sub = command.commands[words[0]]
    parsed: dict[str, Any] = sub.make_context(words[0], words[1:]).params | {"command": words[0]}
    return parsed


def nameless(recipes: dict[str, Recipe]) -> list[Recipe]:
    """Stages, whatever the run is called and keeps."""
    return [recipe.model_copy(update={"name": "", "keep_checkpoints": ()}) for recipe in recipes.values()]


def test_the_rows_are_the_papers() -> None:
    assert {table: sum(name.startswith(f"{table}-") for name in ROWS) for table in SIZES} == SIZES
    assert len(ROWS) == sum(SIZES.values())
    for row in ROWS.values():
        assert all(value is None or 20 < value < 95 for value in row.expected.values())
        drawn = row.name.startswith("basic-figure6") or row.name == "sea-figure3-llava"
        assert (None in row.expected.values()) == drawn


def test_the_same_row_of_two_tables_is_the_same_training() -> None:
    for one, other in [
        ("sea-table2-llava", "sea-table3-llava"),
        ("sea-table2-sea", "sea-figure3-sea"),
        ("sea-table2-gemma-2b-llava", "basic-table3-gemma-2b-llava"),
        ("basic-table1-7b", "basic-table2-both"),
        ("basic-table4-inc", "basic-table4-auto"),
    ]:
        assert nameless(ROWS[one].recipes()) == nameless(ROWS[other].recipes())
    sixteen = [ROWS[name].recipes()["finetune"].loss.basic for name in ("basic-figure6-k16", "basic-table4-inc")]
    assert [basic.layers for basic in sixteen] == [16, None]  # None is half of Vicuna-7B's 32


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipes_header_says_what_a_row_says(path: Path) -> None:
    row = {
        "sea-llava-1.5-7b": "sea-table2-sea",
        "llava-1.5-7b": "sea-table2-llava",
        "sea-prime": "sea-table1-vicuna-7b",
        "basic-llava-1.5-7b": "basic-table1-7b",
    }.get(path.stem)
    if row is None:
        assert "Expected" not in header(path)
        return
    numbers = dict(re.findall(r"([A-Z][\w-]+) (\d+\.\d)\b", re.search(r"Expected.*:(.*)", header(path))[1]))  # type: ignore[index]
    assert {name: float(value) for name, value in numbers.items()} == ROWS[row].expected
    assert nameless(read_recipes(path)) == nameless(ROWS[row].recipes())
    assert re.search(r"Not run by us: it needs the\s+hardware", header(path))
    assert "Hardware: 8 GPUs of 80 GB" in header(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_commands_of_a_header_parse(path: Path) -> None:
    for line in commands(header(path)):
        parsed = parse(line)
        if parsed["command"] == "train":
            assert parsed["recipe"] == path.stem
            assert read_recipes(path, parsed["overrides"] or [])


@pytest.mark.slow
def test_the_commands_of_a_row_parse_and_hang_together() -> None:
    for row in ROWS.values():
        parsed = [parse(line) for line in row.commands()]
        init, *label, train = (each for each in parsed if each["command"] != "eval-commands")
        stages = row.recipes()
        assert (init["command"], init["vision"], init["llm"], train["recipe"]) == (
            "init",
            row.vision,
            row.llm,
            row.name,
        )
        assert {str(stage.model) for stage in stages.values()} == {str(init["out"])}
        asked = [stage for stage in stages.values() if stage.loss.sea.weight]
        assert [str(one["out"]) for one in label] == [str(stage.labels.path) for stage in asked]
        for one, stage in zip(label, asked, strict=True):
            assert (one["images"], str(one["image_root"])) == (stage.data.train, str(stage.data.image_root))
            assert one["encoder"] == row.encoder


@pytest.mark.slow
def test_the_commands_of_a_curve() -> None:
    """Of Figure 3 alone; each row's run is asked along its second stage, and all of them make one table."""
    curves = {name: [line for line in row.commands() if " eval-commands " in line] for name, row in ROWS.items()}
    assert {name for name, lines in curves.items() if lines} == {name for name in ROWS if "figure3" in name}
    for name in ("sea-figure3-no-pretraining", "sea-figure3-llava", "sea-figure3-sea"):
        ask, collect = curves[name]
        assert ask.endswith(" | sh")
        stages = ROWS[name].recipes()
        assert (str(parse(ask)["folder"]), parse(ask)["suite"]) == (f"runs/{name}/finetune", "sea")
        assert parse(ask)["out"] == parse(collect)["collect"] == Path("runs/sea-figure3-results")
        assert [stage.keep_checkpoints for stage in stages.values() if stage.keep_checkpoints] == [
            tuple(tenth / 10 for tenth in range(1, 10))
        ]
        assert list(stages)[-1] == "finetune"


@pytest.mark.slow
def test_one_folder_holds_one_model_and_one_set_of_labels() -> None:
    """So that a command of one row never gives another row what is not its own."""
    models = {(stage.model, row.vision, row.llm) for row in ROWS.values() for stage in row.recipes().values()}
    assert len({folder for folder, *_ in models}) == len(models)
    sea = [(stage, row.encoder) for row in ROWS.values() for stage in row.recipes().values() if stage.loss.sea.weight]
    labels = {(stage.labels.path, stage.data.train, encoder) for stage, encoder in sea}
    assert len({folder for folder, *_ in labels}) == len(labels)


def expanded(text: str) -> list[str]:
    """A name with {a,b} as a shell expands it."""
    pieces = [piece.split(",") for piece in re.split(r"[{}]", text)]
    return ["".join(chosen) for chosen in product(*pieces)]


def test_the_readme_of_jobs_names_every_recipe_and_every_row() -> None:
    text = (ROOT / "jobs" / "README.md").read_text()
    for path in RECIPES:
        assert f"`{path.name}`" in text, path
    named = [name for cell in re.findall(r"`((?:sea|basic)-(?:table|figure)[^`]*)`", text) for name in expanded(cell)]
    assert sorted(named) == sorted(ROWS)
    for line in commands(text):
        if (parsed := parse(line))["command"] == "train":
            assert named_recipes(parsed["recipe"], parsed["overrides"])


def test_the_page_of_the_papers_names_every_row() -> None:
    text = (ROOT / "docs" / "papers.md").read_text()
    cells = re.findall(r"((?:sea|basic)-(?:table|figure)\d[\w{},.-]*)", text)
    assert {name for cell in cells for name in expanded(cell)} == set(ROWS)


def test_a_name_is_a_file_a_row_or_a_recipe_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine")
    Path("demo").write_text("name: not the project's")
    Path("small").mkdir()
    assert named_recipes("mine.yaml", ["seed=7"])[""].seed == 7
    assert named_recipes("demo")[""].name == "not the project's"
    assert list(named_recipes("small")) == ["align", "language"]
    row = named_recipes("sea-table3-tower", ["stages.finetune.learning_rates.vision=1e-6"])
    assert (row["finetune"].name, row["finetune"].learning_rates.vision) == ("sea-table3-tower", 1e-6)
    for spec, expected in [
        ("none.yaml", "none.yaml: cannot be read"),
        ("sea-table9", "sea-table9: expected a recipe's"),
    ]:
        with pytest.raises(UserError, match=expected):
            named_recipes(spec)


def test_what_is_offered_can_be_trained_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_names() == [*(path.stem for path in RECIPES), *ROWS]
    monkeypatch.setattr("trainer.recipes.paper_rows.paper_rows", lambda: ROWS)  # which are read anew for each name
    assert all(named_recipes(name) for name in recipe_names())
    with pytest.raises(UserError, match="papers/sea: expected a recipe's"):
        named_recipes("papers/sea")


def test_the_command_lists_all_names_and_shows_a_recipe(command: Any) -> None:
    listed = re.findall(r"[\w.-]*\w", command("recipes")[1])
    assert not set(recipe_names()) - set(listed)
    shown = command("recipes", "small")[1]
    assert shown.splitlines()[0] == str(builtin_recipes()["small"])
    assert "captioned photos of your own" in shown
    found = json.loads(command("recipes", "--json")[1])
    assert [row["name"] for kind in ("recipes", "rows") for row in found[kind]] == recipe_names()
    (one,) = json.loads(command("recipes", "small", "--json")[1])["recipes"]
    assert one["about"] in shown


def test_the_command_lists_rows_and_shows_one(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ran(command, "recipes")
    assert re.findall(r"^(?:sea|basic)-\S+", shown, re.MULTILINE) == list(ROWS)
    assert re.search(r"^sea-table3-tower-sea +\+ SEA +80\.5 +59\.5 +63\.6 +69\.5 +68\.0 +51\.6 *$", shown, re.MULTILINE)
    monkeypatch.setattr(terminal.output, "_width", 80)
    shown = ran(command, "recipes")
    assert re.findall(r"^(?:sea|basic)-\S+", shown, re.MULTILINE) == list(ROWS)
    assert "…" not in shown
    assert "A wider terminal shows the papers' numbers" in shown
    shown = ran(command, "recipes", "sea-table2-gemma-2b")
    assert list(commands(shown)) == ROWS["sea-table2-gemma-2b"].commands()
    for part in ("VQAv2 76.6", "6 to 10 hours on 8 x H800", "not run by us", "recipes sea-llava-1.5-7b says"):
        assert part in shown
    assert "drawn" in command("recipes", "basic-figure6-k4")[1]
    for wrong, nearest in (("sea-table2-gemma", "sea-table2-gemma-2b"), ("dmeo", "demo")):
        for program, expected in (("recipes", "a row of the papers"), ("train", "a recipe's .yaml file or a name")):
            said = refuses(command, f"{wrong}: expected {expected}", program, wrong)
            assert said.endswith(f"; the nearest is {nearest!r}\n")
    assert refuses(command, "r.yaml: expected", "recipes", "r.yaml").endswith("; it takes names alone, no files\n")
