"""Read the JSON that lmms-eval and lm-eval leave, and arrange the results as the papers' table."""

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
"""Names of the result files of lm-eval and lmms-eval. lmms-eval also writes files for the benchmarks' servers."""

Scores = dict[str, float | None]
"""Scores by column, in percent as in the papers; None is an empty cell."""


class _File(BaseModel):
    """The parts of a harness's file that we read, under keys that both harnesses use."""

    results: dict[str, dict[str, Any]]
    """Metrics by task. A metric's name ends with a comma and the filter of the answers, as in `exact_match,none`."""
    group_subtasks: dict[str, list[str]] = {}
    samples: dict[str, dict[str, int]] = Field(default={}, alias="n-samples")
    """The numbers `original` and `effective` of each task that is no group."""
    model_name: str = ""

    def members(self, task: str) -> set[str]:
        """Collect a task and, if it is a group, all tasks in it."""
        found, ahead = set(), [task]
        while ahead:
            if (name := ahead.pop()) not in found:
                found.add(name)
                ahead += self.group_subtasks.get(name, [])
        return found


class ResultTable(NamedTuple):
    """A table of the papers' rows and the collected results."""

    columns: tuple[str, ...]
    papers: dict[str, tuple[str, Scores]]
    """Label and scores of each row of the paper, by the name that `sea-pipeline train` takes."""
    ours: Scores
    baseline: Scores | None
    difference: Scores | None
    """Ours minus the baseline's."""
    notes: list[str]
    """What a reader of the table must know, one line each."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with the papers' rows as `label` and `scores`."""
        papers = {name: {"label": label, "scores": scores} for name, (label, scores) in self.papers.items()}
        return {**self._asdict(), "papers": papers}


class Curves(NamedTuple):
    """The collected results along runs, by column, run and step."""

    curves: dict[str, dict[str, dict[int, float | None]]]
    papers: dict[str, Scores]
    """The papers' final scores by run and column, for runs that have the name of a paper's row."""
    notes: list[str]
    """What a reader of the tables must know, one line each."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields.

        JSON turns steps into text.
        """
        return self._asdict()


def collect_curves(suite: Suite, results: Path) -> Curves | None:
    """Collect results from folders `NAME/step-STEP`, as `curve_steps` makes them, or return None if there are none.

    Args:
        suite: suite that names the columns.
        results: a folder; a run's name is its path relative to this folder.

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
    """List the step folders that hold results, by step."""
    named = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in sorted(results.rglob("step-*")))
    found = [(int(match[1]), folder) for match, folder in named if match]
    return sorted((step, folder) for step, folder in found if _result_paths(folder))


def collect(suite: Suite, results: Path, baseline: Path | None = None) -> ResultTable:
    """Collect the harnesses' results as the papers' table.

    Args:
        suite: suite that names the columns.
        results: the harnesses' output folder, which is searched, or one file of it.
        baseline: results of another model to compare with.

    Raises:
        UserError: there are no results, a file is damaged, or results are of several models.
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
    return ResultTable(
        tuple(columns), _papers(suite, columns), ours, theirs, theirs and _difference(ours, theirs), notes
    )


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
    """Read the harnesses' files in order of time, which their names begin with."""
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
    """Return the newest score of a column's task.

    None if there is none; a note is added if there should be one.
    """
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
    model = Path(file.model_name or path) / "config.json"
    if model.is_file() and model.stat().st_mtime > path.stat().st_mtime:
        notes.append(
            f"{path}: {column.task} was measured before {model.parent} was written; if that is another model by now, "
            "run its command again"
        )
    samples = [file.samples[task] for task in file.members(column.task) if task in file.samples]
    original, effective = (sum(each.get(key, 0) for each in samples) for key in ("original", "effective"))
    if effective < original:
        notes.append(f"{path}: {column.task} saw {effective:,} of {original:,} samples; not to be compared")
    return value * column.scale


def _metric(result: Mapping[str, Any], metric: str) -> float | None:
    """Look up a score by its name without the filter, if only one filter was used."""
    found = [value for name, value in result.items() if name.partition(",")[0] == metric]
    if len(found) != 1 or isinstance(found[0], bool) or not isinstance(found[0], int | float):
        return None
    return float(found[0]) if math.isfinite(found[0]) else None


def _left_out(path: Path, files: Mapping[Path, _File], columns: Mapping[str, Column]) -> Iterator[str]:
    tasks = {column.task for column in columns.values()}
    known = {member for file in files.values() for task in tasks for member in file.members(task)}
    if others := sorted({task for file in files.values() for task in file.results} - known):
        yield f"{path}: no column of this suite is for {', '.join(others)}"
