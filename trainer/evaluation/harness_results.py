"""What the harnesses found, as the papers' table: read from the JSON that lmms-eval and lm-eval leave."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from sea_pipeline.core.errors import UserError, one_line
from trainer.evaluation.harness_tasks import Column, Suite, llm_columns, suite_columns
from trainer.recipes.paper_rows import paper_rows

_NAME = re.compile(r"results_.+\.json|\d{8}_\d{6}_results\.json")
"""lm-eval's, and lmms-eval's, which leaves files for the benchmarks' servers beside its own."""

Scores = dict[str, float | None]
"""By column, in the papers' percent; None is an empty cell."""


class _File(BaseModel):
    """What we read of a harness's file; both write the same keys."""

    results: dict[str, dict[str, Any]]
    """Metrics by task; a metric is called `exact_match,none`, the filter of the answers behind the comma."""
    group_subtasks: dict[str, list[str]] = {}
    samples: dict[str, dict[str, int]] = Field(default={}, alias="n-samples")
    """`original` and `effective` of each task that is no group."""
    model_name: str = ""

    def members(self, task: str) -> set[str]:
        """A task and, of a group, everything in it."""
        found, ahead = set(), [task]
        while ahead:
            if (name := ahead.pop()) not in found:
                found.add(name)
                ahead += self.group_subtasks.get(name, [])
        return found


class Collected(NamedTuple):
    """A table: the papers' rows, and what was found."""

    columns: tuple[str, ...]
    papers: dict[str, tuple[str, Scores]]
    """Label and numbers of each row of the paper, by the name that `sea-pipeline train` takes."""
    ours: Scores
    baseline: Scores | None
    difference: Scores | None
    """Ours minus the baseline's."""
    notes: list[str]
    """What a reader of the table must know, a line each."""

    def to_json(self) -> dict[str, Any]:
        """The fields, rows of the paper with `label` and `scores`."""
        papers = {name: {"label": label, "scores": scores} for name, (label, scores) in self.papers.items()}
        return {**self._asdict(), "papers": papers}


class Curves(NamedTuple):
    """What was found along runs: by column, run and step."""

    curves: dict[str, dict[str, dict[int, float | None]]]
    papers: dict[str, Scores]
    """The papers' numbers for the end, by run and column, of runs that are called as a row of theirs."""
    notes: list[str]
    """What a reader of the tables must know, a line each."""

    def to_json(self) -> dict[str, Any]:
        """The fields; steps are text there."""
        return self._asdict()


def collect_curves(suite: Suite, results: Path) -> Curves | None:
    """What lies in folders `NAME/step-STEP`, as `curve_steps` has it; None where there are none.

    Args:
        suite: whose columns.
        results: a folder; runs are called by the way from there.

    Raises:
        UserError: see `collect`.
    """
    notes: list[str] = []
    if not (folders := _step_folders(results)):
        return None
    rows, columns = paper_rows(), llm_columns(suite)
    names = {path: path.relative_to(results).as_posix() for path in {folder.parent for _, folder in folders}}
    names |= {path: path.resolve().name for path, name in names.items() if name == "."}
    listed = {run: rows.get(run.rpartition("/")[2]) for run in sorted(names.values())}
    order = list(rows.values())
    runs = sorted(listed, key=lambda run: order.index(row) if (row := listed[run]) else len(order))
    curves: dict[str, dict[str, dict[int, float | None]]] = {name: {run: {} for run in runs} for name in columns}
    for step, folder in folders:
        files = _files(folder)
        for name, column in columns.items():
            curves[name][names[folder.parent]][step] = _score(column, files, notes)
    papers = {run: {name: row.expected.get(name) for name in columns} for run in runs if (row := listed[run])}
    return Curves(curves, papers, notes)


def _step_folders(results: Path) -> list[tuple[int, Path]]:
    """Those with results in them, by step."""
    named = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in sorted(results.rglob("step-*")))
    found = [(int(match[1]), folder) for match, folder in named if match]
    return sorted((step, folder) for step, folder in found if _result_paths(folder))


def collect(suite: Suite, results: Path, baseline: Path | None = None) -> Collected:
    """The papers' table with what the harnesses found.

    Args:
        suite: whose columns.
        results: the harnesses' output folder, searched, or one file of it.
        baseline: another one, to be set beside it.

    Raises:
        UserError: there are no results; a file is damaged; results of several models.
    """
    columns = suite_columns(suite)
    runs: list[Scores] = []
    notes: list[str] = []
    for path in (results, baseline):
        if path is not None:
            files = _files(path)
            runs.append({name: _score(column, files, notes) for name, column in columns.items()})
            notes += _left_out(path, files, columns)
    ours, theirs = runs[0], runs[1] if len(runs) > 1 else None
    return Collected(tuple(columns), _papers(suite, columns), ours, theirs, theirs and _difference(ours, theirs), notes)


def _papers(suite: Suite, columns: Mapping[str, Column]) -> dict[str, tuple[str, Scores]]:
    return {
        name: (row.label, {column: row.expected.get(column) for column in columns})
        for name, row in paper_rows().items()
        if name.startswith(f"{suite}-") and any(value is not None for value in row.expected.values())
    }


def _difference(ours: Scores, theirs: Scores) -> Scores:
    pairs = {name: (value, theirs[name]) for name, value in ours.items()}
    return {name: None if mine is None or its is None else mine - its for name, (mine, its) in pairs.items()}


def _files(path: Path) -> dict[Path, _File]:
    """The harnesses' files, the newest last: their names begin with the time."""
    if not path.exists():
        raise UserError(f"{path}: expected a harness's results; there is no such folder or file")
    if not (paths := _result_paths(path)):
        raise UserError(
            f"{path}: expected results of lmms-eval or lm-eval; found none; run what sea-pipeline eval-commands prints"
        )
    return {file: _read(file) for file in sorted(paths, key=lambda file: (file.name, file))}


def _result_paths(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*.json") if _NAME.fullmatch(file.name)]


def _read(file: Path) -> _File:
    try:
        return _File.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise UserError(
            f"{file}: expected the results of lmms-eval or lm-eval; {one_line(ValueError(found))}; "
            "remove it, and run its command again"
        ) from error


def _score(column: Column, files: Mapping[Path, _File], notes: list[str]) -> float | None:
    """The newest number of a column's task; None, with a note where there should be one."""
    found = [(path, file) for path, file in files.items() if column.task in file.results]
    if not found:
        return None
    models = sorted({file.model_name for _, file in found})
    if len(models) > 1:
        raise UserError(
            f"{found[0][0]}: expected results of one model; found {column.task} of {', '.join(models)}; "
            "name the folder of one of them"
        )
    path, file = found[-1]
    value = _metric(file.results[column.task], column.metric)
    if value is None:
        notes.append(f"{path}: {column.task} has no number for {column.metric}")
        return None
    samples = [file.samples[task] for task in file.members(column.task) if task in file.samples]
    original, effective = (sum(each.get(key, 0) for each in samples) for key in ("original", "effective"))
    if effective < original:
        notes.append(f"{path}: {column.task} saw {effective:,} of {original:,} samples; not to be compared")
    return value * column.scale


def _metric(result: Mapping[str, Any], metric: str) -> float | None:
    """A number by its name, whatever the filter, if only one filter was in use."""
    found = [value for name, value in result.items() if name.partition(",")[0] == metric]
    if len(found) != 1 or isinstance(found[0], bool) or not isinstance(found[0], int | float):
        return None
    return float(found[0]) if math.isfinite(found[0]) else None


def _left_out(path: Path, files: Mapping[Path, _File], columns: Mapping[str, Column]) -> Iterator[str]:
    tasks = {column.task for column in columns.values()}
    known = {member for file in files.values() for task in tasks for member in file.members(task)}
    if others := sorted({task for file in files.values() for task in file.results} - known):
        yield f"{path}: no column of this suite is for {', '.join(others)}"
