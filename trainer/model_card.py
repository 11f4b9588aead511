"""The README.md of an exported model, filled from what its runs wrote down."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from sea_pipeline import __version__
from sea_pipeline.errors import UserError
from sea_pipeline.records import read_json
from sea_pipeline.run_files import RunFile, SummaryFile, read_run_file
from trainer.init import ALIGNMENT
from trainer.load import ModelFolder
from trainer.recipe import Recipe
from trainer.towers import OURS

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PATHS = ("model", "train", "image_root", "path", "teacher", "evaluate")
"""Keys of a recipe that may hold paths of the machine it ran on: only what they end with is shown."""


def model_card(
    folder: ModelFolder,
    source: Path,
    kind: str,
    what: str,
    reader: str,
    notes: Sequence[str],
    *,
    checkpoint: int | None = None,
) -> str:
    """The card as Markdown with the hub's metadata; the licence is left to the person who uploads.

    Args:
        folder: the model's.
        source: what was exported; where it is a run, the card tells of it and of the runs before it.
        kind: "model", "llm" or "projector".
        what: a line on the parts.
        reader: the library that reads it.
        notes: what a reader must know.
        checkpoint: the step of the run that was exported; None for its end.

    Raises:
        UserError: a file of a run is damaged.
    """
    parts = read_json(folder.path / ALIGNMENT, absent={})
    try:
        runs = [_run(path, checkpoint if path == source else None) for path in _chain(source)]
    except KeyError as missing:
        raise UserError(
            f"{source}: expected {missing} in run.json and summary.json of it, or of a run that it began with; found "
            "none; restore the file"
        ) from missing
    names = [str(parts.get(name, "")) for name in ("vision", "llm")]
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string((Path(__file__).parent / "model_card.md.jinja").read_text("utf-8"))
    return template.render(
        base_models=[name for name in names if _HUB_NAME.fullmatch(name) and not Path(name).exists()],
        grid=folder.grid,
        kind=kind,
        needs_towers=kind == "model" and folder.config.vision_config.model_type in OURS,
        notes=notes,
        reader=reader,
        runs=runs,
        version=__version__,
        what=what,
        width=folder.config.text_config.hidden_size,
    )


def _chain(source: Path) -> list[Path]:
    """A run and those whose models it and they began with, the first one first."""
    chain: list[Path] = []
    while (source / "run.json").is_file() and source not in chain:
        chain.insert(0, source)
        model = read_run_file(source / "run.json", RunFile)["recipe"]["model"]
        if not isinstance(model, str) or not (Path(model).parent / "summary.json").is_file():
            break
        source = Path(model).parent
    return chain


def _run(path: Path, checkpoint: int | None) -> dict[str, Any]:
    """What the card says of one run, or of its first steps, whose end has nothing to say of them."""
    run = read_run_file(path / "run.json", RunFile)
    start: dict[str, float] = {}
    end: dict[str, float] = {}
    length = f"step {checkpoint}"
    if checkpoint is None:
        summary = read_run_file(path / "summary.json", SummaryFile)
        start, end = summary["start"], summary["end"]
        length = f"{summary['steps']} steps, {round(summary['seconds'])} s"
    fields = run["fields"]
    return {
        "name": run["recipe"]["name"],
        "recipe": yaml.safe_dump(_changed(run["recipe"], Recipe().model_dump(mode="json")), sort_keys=False).strip(),
        "length": length,
        "seed": run["recipe"]["seed"],
        "fingerprint": run["fingerprint"],
        "data": fields["data"],
        "labels": fields.get("labels"),
        "teacher": (fields.get("teacher") or [None])[0],
        "versions": run["versions"],
        "metrics": [(name, _shown(start.get(name)), _shown(end[name])) for name in end],
    }


def _changed(recipe: Mapping[str, Any], defaults: Any) -> dict[str, Any]:  # noqa: ANN401 - a recipe's value
    """What a recipe says beyond the defaults, without paths."""
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        default = defaults.get(key) if isinstance(defaults, Mapping) else None
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            if inner := _changed(value, default):
                found[key] = inner
        elif value != default:
            found[key] = Path(value).name if key in _PATHS and isinstance(value, str) else value
    return found


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
