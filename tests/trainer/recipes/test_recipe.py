"""Recipes: what is read, what overrides what, and every problem in one line."""

import ast
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from sea_pipeline.core.errors import UserError
from tests.support.paths import ROOT
from trainer.recipes.files import read_recipes
from trainer.recipes.names import builtin_recipes
from trainer.recipes.recipe import Lora, Parts, Recipe

TRAINS = "loss: {sea: {weight: 1}}\n"


def written(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def one(folder: Path, text: str, *overrides: str) -> Recipe:
    recipes = read_recipes(written(folder, text), overrides)
    assert list(recipes) == [""]
    return recipes[""]


def problem(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read_recipes(written(folder, text), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_is_read(tmp_path: Path) -> None:
    text = """
name: mine
model: models/llava
data: {train: a.json, held_out: 0.1, sampling: modality_length}
loss: {lm: 2, sea: {weight: auto, ratio: 0.5}}
learning_rates: {projector: 1e-3, vision: 2.0e-6}
training_arguments: {bf16: true, anything: [1, 2e-1]}
"""
    recipe = one(tmp_path, text)
    assert (recipe.name, recipe.model, recipe.data.train) == ("mine", Path("models/llava"), "a.json")
    assert (recipe.loss.lm, recipe.loss.sea.weight, recipe.loss.sea.ratio) == (2.0, "auto", 0.5)
    assert recipe.learning_rates.projector == 0.001  # YAML 1.1 would read 1e-3 as text
    assert recipe.learning_rates.vision == 2e-6
    assert recipe.training_arguments == {"bf16": True, "anything": [1, 0.2]}
    assert recipe.seed == 0


def test_a_model_of_parts(tmp_path: Path) -> None:
    assert one(tmp_path, "model: {vision: siglip}").model == Parts(vision="siglip", llm="packaged")
    assert one(tmp_path, "{}").model == Parts()


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("loss.sea.weight=10", ("loss", "sea", "weight"), 10.0),
        ("loss.sea.weight=auto", ("loss", "sea", "weight"), "auto"),
        ("learning_rates.projector=1e-3", ("learning_rates", "projector"), 0.001),
        ("learning_rates.llm=2E-05", ("learning_rates", "llm"), 2e-5),
        ("data.random_crop=null", ("data", "random_crop"), None),
        ("data.train=a=b.json", ("data", "train"), "a=b.json"),
        (" seed =7", ("seed",), 7),
        ("data.keep_features=true", ("data", "keep_features"), True),
        ("training_arguments.fsdp=[a, b]", ("training_arguments", "fsdp"), ["a", "b"]),
        ("training_arguments.new.inner=x", ("training_arguments", "new", "inner"), "x"),
        ("data={train: b.json}", ("data", "train"), "b.json"),
        ("data={train: b.json}", ("data", "held_out"), 0.25),  # mappings merge
        ("loss={das: &a {weight: 1, ratio: 2}, sds: {<<: *a, ratio: 3}}", ("loss", "sds", "ratio"), 3.0),
    ],
)
def test_overrides(tmp_path: Path, override: str, place: tuple[str, ...], value: Any) -> None:
    text = TRAINS + "data: {train: a.json, held_out: 0.25}\ntraining_arguments: {bf16: true}\n"
    found: Any = one(tmp_path, text, override).model_dump()
    assert found["training_arguments"]["bf16"] is True
    for part in place:
        found = found[part]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "key", ["model", "model.attach", "data.train", "data.image_root", "data.evaluate", "labels.path", "teacher"]
)
def test_an_empty_text_is_no_path(tmp_path: Path, key: str) -> None:
    """It would be the working folder."""
    found = problem(tmp_path, "seed: 1", f"{key}=''")
    assert f"{key}: expected a value, found ''" in found


def test_later_overrides_win(tmp_path: Path) -> None:
    assert one(tmp_path, TRAINS, "seed=1", "loss.lm=3", "seed=2", "loss.lm=4").seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected KEY=VALUE"),
        ("=3", "--set =3: expected KEY=VALUE"),
        (".loss=1", "--set .loss=1: expected KEY=VALUE"),
        ("loss={sea: {weight: 1, weight: 2}}", "YAML: line 1 has the key weight again, after line 1; keep one of them"),
        ("name=../x", "name: expected a folder's name, printable and without slashes; found '../x'"),
        ("loss.sea.logit_scale_init=.nan", "--set loss.sea.logit_scale_init: input should be a finite number, found"),
        ("learning_rates.llm=-0", "--set learning_rates.llm: input should be greater than 0, found 0"),
        ("loss.sds.temperature=1e400", "--set loss.sds.temperature: input should be a finite number, found inf"),
        ("teacher=", "--set teacher=: expected a value; found none; write teacher=null for none"),
        ("seed={", "--set seed={: the value is no YAML"),
        ("seed=2024-13-45", "--set seed=2024-13-45: the value is no YAML"),
        ("sead=3", "--set sead: there is no such key; expected seed"),
        ("lr=3", "lr: there is no such key; expected name, preset, model, "),
        ("stage.first.seed=3", "stage: there is no such key; expected stages"),
        ("loss.sea.weigth=3", "loss.sea.weigth: there is no such key; expected weight"),
        ("model.visoin=x", "--set model.visoin: there is no such key; expected vision"),
        ("loss.sae.weight=3", "loss.sae: there is no such key"),
        ("loss=3", "--set loss: input should be keys and values, found 3"),
        ("loss.sea.weight=abc", "--set loss.sea.weight: input should be a valid number or 'auto', found 'abc'"),
        ("model=3", "--set model: input should be a path or keys and values, found 3"),
        ("labels.path=3", "--set labels.path: input should be a valid string or a path, found 3"),
        ("lora.targets=3", "--set lora.targets: input should be 'all-linear' or a list, found 3"),
        ("lora.targets=[q_proj, 3]", "--set lora.targets.1: input should be a valid string, found 3"),
        ("learning_rates.projector=null", "r.yaml, with --set: learning_rates.projector: loss.sea"),
        ("stages.first.seed=3", "r.yaml: --set stages.first: it has no stages"),
        ("stages=3", "--set stages"),
        ("stages.first=3", "--set stages.first"),
    ],
)
def test_overrides_that_are_none(tmp_path: Path, override: str, message: str) -> None:
    assert message in problem(tmp_path, TRAINS, override)


STAGED = """
name: both
data: {train: a.json}
learning_rates: {projector: 1e-3}
loss: {sea: {weight: 1}}
stages:
  pretrain: {}
  finetune:
    data: {template: vicuna_v1}
    learning_rates: {llm: 2e-5}
    loss: {sea: {weight: 0}}
"""


def test_stages_are_the_file_with_what_differs(tmp_path: Path) -> None:
    recipes = read_recipes(written(tmp_path, STAGED))
    assert list(recipes) == ["pretrain", "finetune"]
    first, second = recipes.values()
    assert (first.data.template, first.learning_rates.llm, first.loss.sea.weight) == ("own", None, 1)
    assert (second.data.template, second.learning_rates.llm, second.loss.sea.weight) == ("vicuna_v1", 2e-5, 0)
    assert first.data.train == second.data.train == "a.json"
    assert first.learning_rates.projector == second.learning_rates.projector == 1e-3


def test_overrides_of_stages(tmp_path: Path) -> None:
    overrides = ["learning_rates.projector=5", "stages.finetune.learning_rates.projector=6", "data.template=plain"]
    first, second = read_recipes(written(tmp_path, STAGED), overrides).values()
    assert (first.learning_rates.projector, second.learning_rates.projector) == (5, 6)
    assert first.data.template == second.data.template == "plain"  # over what the stage says
    assert second.learning_rates.llm == 2e-5
    for override, message in {
        "stages.other.seed=1": "r.yaml: --set stages.other: expected one of its stages, pretrain, finetune",
        "stages.finetune=1": "--set stages.finetune: expected",
        "stages={1: {}, b: {}}": "r.yaml: --set stages.1: expected one of its stages",
        "stages=[1]": "--set stages: expected",
        "stages.finetune.sead=1": "--set stages.finetune.sead: there is no such key",
    }.items():
        assert message in problem(tmp_path, STAGED, override)


def test_a_base_holds_where_the_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    written(tmp_path / "below", STAGED, "base.yaml")
    text = "base: below/base.yaml\nname: mine\nstages: {pretrain: null, finetune: {seed: 4}}"
    recipes = read_recipes(written(tmp_path, text))
    assert list(recipes) == ["finetune"]
    mine = recipes["finetune"]
    assert (mine.name, mine.seed, mine.data.template, mine.learning_rates.llm) == ("mine", 4, "vicuna_v1", 2e-5)
    second = written(tmp_path, "base: r.yaml\nseed: 8\nstages: {finetune: {seed: 9}}", "second.yaml")
    assert read_recipes(second)["finetune"].seed == 9
    found = problem(tmp_path, TRAINS, "base=r.yaml")  # only a file has one
    assert found.startswith("--set base: there is no such key; expected name, ")
    assert "base" not in found.partition("expected")[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: r.yaml", "base: expected another recipe's file; found 'r.yaml'"),
        ("base: ./../{here}/./r.yaml", "base: expected another recipe's file; found"),
        ("base: [a]", "base: expected another recipe's file; found ['a']"),
        ("base: none.yaml", "none.yaml: cannot be read: No such file"),
        ("stages: {one: null}", "stages: "),
        ("stages: {one: 3}", "stages: expected a mapping of names to keys; found {'one': 3}"),
        ("stages: [one]", "stages: expected a mapping of names to keys; found ['one']"),
        ("stages: {a/b: {}}", "stages.a/b: expected a folder's name, printable and without slashes"),
        ("stages: {1: {}, '1': {}}", "expected YAML; line 1 has the key 1 again"),
        ("loss:\n  sea: {weight: 1}\n  sea: {}", "expected YAML; line 3 has the key sea again, after line 2; keep one"),
        ("a: [", "expected YAML; "),
        ("a: 2024-13-45", "expected YAML; "),
        ("a: !!python/name:os.system x", "expected YAML; "),
        ("- a\n- b", "as the recipes in jobs/ have them; found ['a', 'b']"),
        ("", "as the recipes in jobs/ have them; found nothing"),
        ("just words", "as the recipes in jobs/ have them; found 'just words'"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    found = problem(tmp_path, text.replace("{here}", tmp_path.name))
    assert str(tmp_path) in found
    assert message in found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00name")
    for path, message in ((tmp_path / "no.yaml", "cannot be read"), (tmp_path, "cannot be read"), (binary, "YAML")):
        with pytest.raises(UserError, match=message) as caught:
            read_recipes(path)
        assert str(path) in str(caught.value)


def test_every_problem_at_once(tmp_path: Path) -> None:
    text = "sead: 3\ndata: {train: 5, max_length: 3, random_crop: 1.5}\nloss: {sea: {weight: -1, window: x}}\npreset: p"
    found = problem(tmp_path, text)
    assert found.startswith(f"{tmp_path / 'r.yaml'}: ")
    for part in (
        "sead: there is no such key",
        "data.train: input should be a valid string, found 5",
        "data.max_length: input should be greater than or equal to 16, found 3",
        "data.random_crop: input should be less than or equal to 1, found 1.5",
        "loss.sea.weight: input should be greater than or equal to 0 or 'auto', found -1",
        "loss.sea.window: ",
        "preset: input should be 'paper', found 'p'",
    ):
        assert part in found


RULES = {
    "loss: {lm: 0}": "loss: every weight is 0; give one of the terms a weight",
    "loss: {lm: 0, sea: {weight: auto}}": "loss.sea.weight: auto holds a ratio to L_lm",
    TRAINS.replace("{sea", "{lm: 0, sea") + "learning_rates: {llm: 1}": "only the projector trains",
    TRAINS.replace("{sea", "{lm: 0, sea") + "learning_rates: {vision: 1}": "only the projector trains",
    TRAINS + "data: {random_crop: 0.5}": "labels must follow the crop; set labels.transfer: true",
    "data: {random_crop: 0.5, keep_features: true}": "or a tower that trains; set it to false",
    "data: {keep_features: true}\nlearning_rates: {vision: 1}": "the tower's output changes",
    TRAINS + "learning_rates: {projector: null, llm: 1}": "learning_rates.projector: loss.sea trains the projector",
}


@pytest.mark.parametrize("text", RULES)
def test_what_does_not_go_together(tmp_path: Path, text: str) -> None:
    found = problem(tmp_path, text)
    assert found.startswith(f"{tmp_path / 'r.yaml'}: ")
    assert RULES[text] in found


def test_several_rules_at_once_and_none(tmp_path: Path) -> None:
    both = TRAINS + "learning_rates: {projector: null}\ndata: {random_crop: 0.5, keep_features: true}"
    assert problem(tmp_path, both).count("; ") >= 3
    one(tmp_path, TRAINS + "data: {random_crop: 0.5}\nlabels: {transfer: true}")
    one(tmp_path, "data: {random_crop: 0.5}")
    one(tmp_path, "data: {random_crop: 0.5, keep_features: false}")
    one(tmp_path, "loss: {lm: 0, sea: {weight: 1}}")
    one(tmp_path, "learning_rates: {projector: null, llm: 1}")


def test_adapters_at_the_top_are_for_the_stages_that_train_the_llm(tmp_path: Path) -> None:
    text = "lora: {}\nstages:\n  align: {loss: {lm: 0, sea: {weight: 1}}}\n  language: {learning_rates: {llm: 1}}\n"
    assert "stages.align: lora: its adapters train with the LLM; " in problem(tmp_path, text)
    assert "or lora to null" in problem(tmp_path, text)
    align, language = read_recipes(written(tmp_path, text), ["stages.align.lora=null"]).values()
    assert (align.lora, language.lora) == (None, Lora())


def test_the_papers_preset_holds_where_nothing_is_set(tmp_path: Path) -> None:
    letter = one(tmp_path, "preset: paper").loss.sea
    assert (letter.weight, letter.logit_scale_init, letter.window, letter.word_prefix) == (1.0, 0.0, 2, "space")
    mine = one(tmp_path, "preset: paper\nloss: {sea: {window: 3}}", "loss.sea.weight=auto").loss.sea
    assert (mine.weight, mine.window, mine.logit_scale_init) == ("auto", 3, 0.0)
    first, second = read_recipes(written(tmp_path, "stages: {a: {preset: paper}, b: {}}")).values()
    assert (first.loss.sea.weight, second.loss.sea.weight) == (1.0, 0)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_projects_own_recipes(path: Path) -> None:
    recipes = read_recipes(path)
    assert recipes
    assert {recipe.name for recipe in recipes.values()} == {path.stem}
    assert builtin_recipes()[path.stem].read_bytes() == path.read_bytes()
    for recipe in recipes.values():
        assert Recipe.model_validate(yaml.safe_load(recipe.model_dump_json())) == recipe  # as run.json keeps it


def test_each_problem_has_the_place_where_it_was_written(tmp_path: Path) -> None:
    text = "seed: x\nstages: {one: {loss: {sea: {weight: y}}}, two: {}}"
    overrides = ("learning_rates.llm=z", "stages.one.data.max_length=1", "stages.two.data.max_length=2")
    assert problem(tmp_path, text, *overrides) == (
        f"{tmp_path / 'r.yaml'}: stages.one: loss.sea.weight: input should be a valid number or 'auto', found 'y'; "
        "seed: input should be a valid integer, found 'x'; "
        "--set stages.one.data.max_length: input should be greater than or equal to 16, found 1; "
        "--set learning_rates.llm: input should be a valid number, found 'z'"
    )


def test_stages_may_be_numbers(tmp_path: Path) -> None:
    recipes = read_recipes(written(tmp_path, "stages: {1: {}, 2: {}}"), ["stages.2.seed=3"])
    assert [(name, recipe.seed) for name, recipe in recipes.items()] == [("1", 0), ("2", 3)]


def test_every_key_has_a_docstring() -> None:
    """docs/train.md says that the file explains every key."""
    tree = ast.parse((ROOT / "trainer" / "recipes" / "recipe.py").read_text("utf-8"))
    bodies = [[*node.body, ast.Pass()] for node in tree.body if isinstance(node, ast.ClassDef)]
    pairs = [pair for body in bodies for pair in pairwise(body) if isinstance(pair[0], ast.AnnAssign)]
    assert len(pairs) > 60
    assert [ast.unparse(key) for key, text in pairs if not isinstance(text, ast.Expr)] == []
