"""Fill the README.md of an exported model from what its runs recorded."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sea_pipeline import __version__
from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders.spec import split_s2
from sea_pipeline.output.run_files import RunFile, SummaryFile, read_run_file
from sea_pipeline.storage.json_files import read_json
from trainer.model import hub
from trainer.model.llava_folder import ALIGNMENT
from trainer.model.load import ModelFolder
from trainer.recipes.recipe import Recipe
from trainer.towers import OURS

_TASKS = {"model": "image-text-to-text", "llm": "text-generation"}
"""The hub's name of the task of each kind."""
_RELATIONS = {"model": "finetune", "projector": "adapter"}
"""Relation of each kind to the tower and the LLM. Without it the hub would infer `merge` from two base models, which
means merged weights."""
_NUMBER = re.compile(r"[-+]?[\d._]+(e[-+]?\d+)?|0o[0-7]+", re.IGNORECASE)
"""Matches at least all text that the hub's YAML 1.2 reads as a number and PyYAML's 1.1 does not quote, such as 1e-3."""
_PATHS = ("model", "train", "image_root", "path", "teacher", "evaluate")
"""Keys of a recipe that may hold paths of the machine it ran on; only the last part of such a path is shown."""
_FOLDERS = re.compile(r"(^|[:=,/])~?/(?:.*/)?", re.DOTALL)
"""The folders of an absolute path, which stands alone or in a spec."""


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
    """Render the card as Markdown with the hub's metadata.

    The licence is left to the person who uploads the model.

    Args:
        folder: the model folder.
        source: what was exported; the card describes a run and the runs that it started from.
        kind: "model", "llm" or "projector".
        what: a line that names the parts.
        reader: the libraries that read it.
        notes: what the user must know, one sentence each.
        checkpoint: the exported step of the run; None for its end.

    Raises:
        UserError: a file of a run is damaged.
    """
    try:
        runs = [_run(path, checkpoint if path == source else None) for path in _chain(source)]
    except KeyError as missing:
        raise UserError(
            f"{source}: expected {missing} in run.json and summary.json of it, or of a run that it began with; found "
            "none; restore the file"
        ) from missing
    card = ModelCard.from_template(
        _metadata(folder, kind, runs),
        template_path=str(Path(__file__).parent / "model_card.md.jinja"),
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
    return str(card)


def _metadata(folder: ModelFolder, kind: str, runs: Sequence[Mapping[str, Any]]) -> ModelCardData:
    """Build the metadata that the hub lists a model by."""
    made_of = read_json(folder.path / ALIGNMENT, absent={})
    paths = made_of.get("paths") or []  # they may look like names elsewhere
    named = [part for part in (("llm",) if kind == "llm" else ("vision", "llm")) if part not in paths]
    parts = [split_s2(str(made_of.get(part, "")))[1] for part in named]
    bases = [name for name in parts if hub.is_name(name) and not Path(name).exists()]
    measured = runs[-1:] if kind == "model" else []  # the run measured the whole model, not its parts
    results = [
        EvalResult(_TASKS[kind], "held-out", f"{run['held_out']} (held out)", metric, value, metric_name=metric)
        for run in measured
        for metric, value in run["end"].items()
        if math.isfinite(value)  # the hub's model index accepts no NaN
    ]
    name = runs[-1]["name"] or "LLaVA" if results else ""
    return ModelCardData(
        base_model=bases or None,
        base_model_relation=_RELATIONS.get(kind) if bases and runs else None,
        eval_results=results or None,
        library_name="transformers" if kind in _TASKS else None,
        model_name=f"run {name}" if _NUMBER.fullmatch(name) else name or None,
        pipeline_tag=_TASKS.get(kind),
        tags=["llava", "sea-pipeline"],
    )


def _chain(source: Path) -> list[Path]:
    """List a run and the runs whose models it started from, the earliest run first."""
    chain: list[Path] = []
    while (source / "run.json").is_file() and source not in chain:
        chain.insert(0, source)
        model = read_run_file(source / "run.json", RunFile)["recipe"]["model"]
        if not isinstance(model, str) or not (Path(model).parent / "summary.json").is_file():
            break
        source = Path(model).parent
    return chain


def _run(path: Path, checkpoint: int | None) -> dict[str, Any]:
    """Collect what the card says of a run.

    If a checkpoint is given, the run's summary is left out, because it describes the end.
    """
    run = read_run_file(path / "run.json", RunFile)
    start: dict[str, float] = {}
    end: dict[str, float] = {}
    length = f"step {checkpoint}"
    if checkpoint is None:
        summary = read_run_file(path / "summary.json", SummaryFile)
        start, end = summary["start"], summary["end"]
        length = f"{summary['steps']} steps, {round(summary['seconds'])} s"
    fields, data = run["fields"], run["recipe"]["data"]
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
        "held_out": Path(data.get("evaluate") or data["train"]).name,
        "start": start,
        "end": end,
    }


def _changed(value: Any, default: Any, key: str = "") -> Any:  # noqa: ANN401 - a recipe's value
    """Return what differs from the default in a value of a recipe, with paths cut to their last part."""
    if isinstance(value, Mapping):
        known = default if isinstance(default, Mapping) else {}
        found = {name: _changed(one, known.get(name), name) for name, one in value.items() if one != known.get(name)}
        return {name: one for name, one in found.items() if one != {}}
    if isinstance(value, list):
        return [_changed(one, None) for one in value]
    if isinstance(value, str):
        return Path(value).name if key in _PATHS else _FOLDERS.sub(r"\1", value.rstrip("/"))
    return value
