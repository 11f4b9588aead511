"""Options are made of settings: each field is one, or is left out on purpose; what shells offer for them."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from math import inf, nan
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import typer.main
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from sea_pipeline.cli import app
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.options import options_of, settings_of
from sea_pipeline.core.settings import Settings, Strict
from sea_pipeline.execution.cluster_settings import WorkerSettings
from sea_pipeline.labels.settings import ForecastSettings, LabelSettings, LlmProbeSettings, ProbeSettings
from sea_pipeline.report.settings import ReportSettings
from tests.support.refused import refused, refuses
from trainer.data.settings import TokensSettings
from trainer.evaluation.settings import EvaluateSettings
from trainer.export.settings import ExportSettings
from trainer.model.settings import InitSettings
from trainer.recipes.names import recipe_names
from trainer.recipes.recipe import Recipe
from trainer.teacher.settings import TeachSettings

COMMANDS: dict[str, Any] = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
MADE: list[tuple[str, type[Settings]]] = [
    ("label", LabelSettings),
    ("plan", ForecastSettings),
    ("probe", ProbeSettings),
    ("probe", LlmProbeSettings),
    ("teacher", TeachSettings),
    ("evaluate", EvaluateSettings),
    ("export", ExportSettings),
    ("init", InitSettings),
    ("report", ReportSettings),
    ("tokens", TokensSettings),
]
ABSENT = {
    "plan": {"id_column", "streaming", "out", "crops", "limit", "extend", "max_bad", "retry_bad", "probe"}
    | WorkerSettings.model_fields.keys() - {"workers"},  # its own workers are how many to forecast for
    "teacher": {"outliers", "lens"},  # depend on a batch, or on training
    "export": {"kind"},  # --llm-only and --projector-only
}
"""Fields that are no options, by command."""
OWN = {"label": set(), "export": {"llm_only", "projector_only"}}
"""Options that no settings have, beside --json, --quiet and --verbose."""


def fields(settings: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Fields, and those of settings within, which come first: the outer ones count."""
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation)
        else:
            yield name, field


@pytest.mark.parametrize(("name", "settings"), MADE)
def test_every_field_is_an_option_or_left_out_on_purpose(name: str, settings: type[Settings]) -> None:
    options = {option.name for option in COMMANDS[name].params}
    assert {field for field, _ in fields(settings)} - options == ABSENT.get(name, set())


@pytest.mark.parametrize("name", sorted({name for name, _ in MADE}))
def test_every_option_is_a_field(name: str) -> None:
    every = {field for command, settings in MADE if command == name for field, _ in fields(settings)}
    assert {option.name for option in COMMANDS[name].params} - every == (
        OWN.get(name, set()) | {"as_json", "quiet", "verbose"}
    )


@pytest.mark.parametrize(("name", "settings"), MADE)
def test_defaults_and_help_are_those_of_the_fields(name: str, settings: type[Settings]) -> None:
    options = {option.name: option for option in COMMANDS[name].params}
    for field, made_of in dict(fields(settings)).items():
        if field in options and not options[field].hidden:
            option = options[field]
            assert option.help == " ".join(made_of.description.split()), field
            if (name, field) not in {("probe", "data"), ("probe", "llm"), ("probe", "encoder"), ("report", "folders")}:
                assert option.required == made_of.is_required(), field
                assert made_of.is_required() or option.default == made_of.default, field


def test_label_and_teacher_have_the_same_options_of_workers() -> None:
    for name in WorkerSettings.model_fields:
        of_label, of_teacher = (
            next(option for option in COMMANDS[command].params if option.name == name)
            for command in ("label", "teacher")
        )
        assert (of_label.opts, of_label.secondary_opts) == (of_teacher.opts, of_teacher.secondary_opts)
        assert (of_label.help, of_label.default) == (of_teacher.help, of_teacher.default)


class _Inner(Settings):
    shared: int = 3
    """Three."""


class _Outer(Settings):
    several: tuple[str, ...] = ("a",)
    """Some."""
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    """A share, of which
    this is the second line."""
    kind: Literal["a", "b"] = "a"
    on: bool = True
    off: bool = False
    inner: _Inner = _Inner()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("label", "--images", ""), "--images"),
        (("label", "--out="), "--out"),
        (("evaluate", "--labels", "", "model"), "--labels"),
        (("train", ""), "an argument"),
        (("inspect", ""), "an argument"),
    ],
)
def test_an_empty_text_is_no_path(command: Any, arguments: tuple[str, ...], named: str) -> None:
    """It would be the working folder."""
    refuses(command, f"error: {named}: expected a value; found an empty text; give one, or leave it out", *arguments)


@pytest.mark.parametrize("settings", [*(settings for _, settings in MADE), Recipe])
def test_numbers_are_finite_and_not_too_large_for_libraries(settings: type[BaseModel]) -> None:
    for name, field in fields(settings):
        kinds = {field.annotation, *get_args(field.annotation)} if name != "feature_layer" else set()  # has two sides
        numbers = [10**20] if int in kinds else [inf, nan] if float in kinds else []
        for number in numbers:
            with pytest.raises(ValidationError, match=r"less than|finite number"):
                TypeAdapter(Annotated[field.annotation, field], config=Strict.model_config).validate_python(number)


def test_json_of_a_command_is_strict(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [inf, nan], "b": 1.5, "c": "NaN"})
    assert capsys.readouterr().out == '{"a": [null, null], "b": 1.5, "c": "NaN"}\n'
    for price in ("inf", "1e308"):
        refuses(command, "error: --price: input should be ", "plan", "--images", 10, "--price", price)


def test_settings_have_no_empty_texts() -> None:
    with refused("--images: expected a value, found ''; --out: expected a value, found ''"):
        LabelSettings.of(images="", out="")


def test_what_options_are_made_of_fields() -> None:
    made = {one.name: one for one in options_of(_Outer, in_range=("share",), spelled={"kind": "--sort"})}
    infos = {name: one.annotation.__metadata__[0] for name, one in made.items()}
    kinds = {name: one.annotation.__origin__ for name, one in made.items()}
    assert list(made) == ["several", "share", "kind", "on", "off", "shared"]
    assert kinds == {
        "several": list[str], "share": float | None, "kind": Literal["a", "b"], "on": bool, "off": bool, "shared": int,
    }  # fmt: skip
    spelled = [infos[name].default for name in ("share", "kind", "on", "off")]
    assert spelled == ["--share", "--sort", "--on/--no-on", "--off"]
    assert (infos["share"].min, infos["share"].max, infos["share"].help) == (
        0, 1, "A share, of which this is the second line.",
    )  # fmt: skip
    assert settings_of(_Outer, {"several": ["b"], "shared": 4, "other": 1}) == _Outer(
        several=("b",), inner=_Inner(shared=4)
    )


def test_a_field_of_settings_within_that_the_outer_ones_have_too_is_theirs() -> None:
    assert settings_of(ForecastSettings, {"planned": 1, "workers": 9}).workers == 9
    assert settings_of(ForecastSettings, {"planned": 1, "workers": 9}).crew.workers is None


@pytest.mark.parametrize(("name", "settings"), MADE)
def test_settings_are_where_they_were(name: str, settings: type[Settings]) -> None:
    old = {
        "label": "sea_pipeline.labels.run", "plan": "sea_pipeline.labels.forecast",
        "probe": "sea_pipeline.labels.sign_probe", "teacher": "trainer.teacher.run",
        "evaluate": "trainer.evaluation.run", "export": "trainer.export.run", "init": "trainer.model.settings",
        "report": "sea_pipeline.report.run", "tokens": "trainer.data.row_tokens",
    }  # fmt: skip
    module = "trainer.evaluation.llm_probe" if settings is LlmProbeSettings else old[name]
    assert getattr(import_module(module), settings.__name__) is settings


COMPLETING = """
import io, json, os, sys
from contextlib import redirect_stdout
from sea_pipeline.cli import main
sys.argv, before = ["sea-pipeline"], dict(os.environ)
for variables in json.loads(sys.stdin.read()):
    os.environ.clear()
    os.environ.update(before | variables)
    with redirect_stdout(io.StringIO()) as said:
        try:
            main()
        except SystemExit:
            pass
    heavy = {"numpy", "torch", "pyarrow", "trainer.recipes.recipe"} & set(sys.modules)
    print(json.dumps([[line for line in said.getvalue().splitlines() if line], sorted(heavy)]))
"""


def complete(folder: Path, lines: Sequence[str], shell: str = "bash") -> list[tuple[list[str], list[str]]]:
    """What a shell offers for the last word of each line, which may be empty; and libraries that are loaded then."""
    asked = []
    for line in lines:
        variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        if shell != "bash":
            variables = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        asked.append(variables | {"_SEA_PIPELINE_COMPLETE": f"complete_{shell}"})
    done = subprocess.run(
        [sys.executable, "-c", COMPLETING], input=json.dumps(asked), cwd=folder, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("checkout")
    for name in (
        "runs/labels/mine/dataset.json", "runs/demo/labels/dataset.json", "runs/targets/his/dataset.json",
        "runs/train/a/run.json", "runs/train/a/model/config.json", "runs/demo/demo/align/run.json",
        "runs/models/start/config.json", "jobs/small.yaml", "jobs/README.md", "runs/labels/other/x.txt",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


OFFERED: dict[str, list[str]] = {
    "sea-pipeline in": ["inspect", "init"],
    "sea-pipeline label --precision ": ["float32", "bfloat16", "float16"],
    "sea-pipeline label --wordlist m": ["mine:"],
    "sea-pipeline inspect ": ["runs/demo/labels", "runs/labels/mine"],
    "sea-pipeline status runs/t": ["runs/targets/his"],
    "sea-pipeline train ": [*recipe_names(), "jobs/small.yaml"],
    "sea-pipeline recipes sea-table3-t": ["sea-table3-tower", "sea-table3-tower-sea"],
    "sea-pipeline evaluate ": ["runs/train/a/model", "runs/models/start"],
    "sea-pipeline evaluate x --labels runs/l": ["runs/labels/mine"],
    "sea-pipeline report runs/demo/": ["runs/demo/labels", "runs/demo/demo/align"],
    "sea-pipeline export runs/train/": ["runs/train/a", "runs/train/a/model"],
    "sea-pipeline inspect elsewhere/": [],
}


@pytest.mark.slow
def test_bash_is_offered_what_lies_there(checkout: Path) -> None:
    found = complete(checkout, list(OFFERED))
    assert dict(zip(OFFERED, (sorted(offered) for offered, _ in found), strict=True)) == {
        line: sorted(offered) for line, offered in OFFERED.items()
    }


@pytest.mark.slow
def test_zsh_and_fish_are_offered_the_same(checkout: Path) -> None:
    ((offered, _),) = complete(checkout, ["sea-pipeline inspect runs/l"], "zsh")
    assert "runs/labels/mine" in "\n".join(offered)
    assert complete(checkout, ["sea-pipeline inspect runs/l"], "fish")[0][0] == ["runs/labels/mine"]


@pytest.mark.slow
def test_a_shell_does_not_wait_for_libraries(checkout: Path) -> None:
    assert [loaded for _, loaded in complete(checkout, ["sea-pipeline report ", "sea-pipeline train "])] == [[], []]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_its_script(command: Any, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_SEA_PIPELINE_COMPLETE", f"source_{shell}")
    code, stdout, stderr = command()
    assert (code, stderr) == (0, "")
    assert f"_SEA_PIPELINE_COMPLETE=complete_{shell}" in stdout
