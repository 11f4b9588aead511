"""Collect training runs as the data of the report's pages on tokens, texts, metrics and recipes."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml
from PIL import Image

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.inputs.crops import CropBox
from sea_pipeline.inputs.pixels import read_image
from sea_pipeline.output.run_files import RunFile, SummaryFile, comparable, read_log, read_run_file
from sea_pipeline.report.packing import narrow, packed, thumbnail
from sea_pipeline.storage.hashing import file_sha256, fingerprint_of, leaves
from sea_pipeline.storage.json_files import json_object
from sea_pipeline.storage.retry import refuse_unreadable

MOST_POINTS = 600
"""The most points of a curve. Longer curves are thinned evenly."""
VIEWS = "views.json"
_AGAIN = "remove it, and run the same command again, which makes it anew or goes without"
_NOT_CURVES = ("step", "seconds", "epoch")


@dataclass
class RunInput:
    """A finished run's folder, its name, and its views, if they exist."""

    path: Path
    name: str
    record: dict[str, Any]
    """The content of `run.json`."""
    summary: dict[str, Any]
    views: dict[str, Any] | None = None
    """The content of `views.json`, see `trainer.training.report_views.run_views`."""
    note: str = ""
    """The reason why views could not be made now."""

    @classmethod
    def of(cls, path: Path, name: str) -> "RunInput":
        """Read a run's small files.

        Raises:
            UserError: a file is damaged, or the run is not finished.
        """
        if not (path / "summary.json").is_file():
            raise UserError(
                f"{path}: expected a finished run; found no summary.json; wait for its end, or, if it was stopped, run "
                "the same sea-pipeline train command again"
            )
        record = read_run_file(path / "run.json", RunFile, "recipe", "fields", "fingerprint")
        summary = read_run_file(path / "summary.json", SummaryFile)
        return cls(path, name, record, summary)


def kept_views(run: Path) -> dict[str, Any] | None:
    """Read a run's `views.json`, or return None if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = run / VIEWS
    try:
        return read_views(path) if path.exists() else None
    except (OSError, ValueError) as error:
        refuse_unreadable(path, error)
        raise UserError(f"{path}: damaged: {one_line(error)}; {_AGAIN}") from error


def read_views(path: Path) -> dict[str, Any]:
    """Read a file of views, without its `sha256`, which files of earlier versions lack.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    found = json_object(path.read_bytes())
    if found.pop("sha256", None) not in (None, fingerprint_of(found)):
        raise ValueError("its content is not as it was written")
    return found


def runs_data(runs: Sequence[RunInput], longest: int = 320) -> dict[str, Any]:
    """Collect what the report shows of runs.

    `list` has an object for each run. `photos` has the photos that the runs show, each once, by a name, with `answer`
    and `picture`; a photo's name is its image id, with a number after it if runs show other photos of that id.
    `pictures` has the parts of photos that runs see, by number. `differences` has the recipe's keys whose values differ
    between the runs, with the values in the order of the runs.
    """
    shown = _Shown(longest)
    listed = [_run_data(run, shown) for run in runs]
    recipes = [leaves(run.record["recipe"]) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    return {
        "list": listed,
        "photos": shown.photos,
        "pictures": shown.pictures,
        "differences": [
            {"key": key, "values": [_said(recipe.get(key)) for recipe in recipes]}
            for key in keys
            if len({_said(recipe.get(key)) for recipe in recipes}) > 1
        ],
    }


class _Shown:
    """Collect the photos that runs show, and the part of each that a run sees."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._names: dict[tuple[str, str], str] = {}
        """The name of a photo, by its image id and its content."""
        self._numbers: dict[tuple[str, CropBox], str] = {}
        self.photos: dict[str, dict[str, Any]] = {}
        self.pictures: dict[str, str | None] = {}

    def add(self, image: dict[str, Any]) -> tuple[str, str]:
        """Add an image of a run's views, and return its photo's name and its picture's number."""
        path, box = Path(image["file"]), cast("CropBox", tuple(map(float, image["box"])))
        content = _content(path)
        number = self._numbers.setdefault((content, box), str(len(self._numbers)))
        if number not in self.pictures:
            self.pictures[number] = thumbnail(partial(_read, path), box, self._longest)
        name = self._names.setdefault((image["image"], content), self._free(image["image"]))
        self.photos.setdefault(name, {"picture": number, "answer": image["answer"]})
        return name, number

    def _free(self, image_id: str) -> str:
        """Return an image id, or with a number if it is the name of another photo."""
        names = itertools.chain([image_id], (f"{image_id} ({number})" for number in itertools.count(2)))
        return next(name for name in names if name not in self.photos)


def _content(path: Path) -> str:
    """Identify a photo by its bytes, because folders are copied, or by its path if it is gone."""
    try:
        return file_sha256(path)
    except OSError:
        return str(path.absolute())


@contextmanager
def _whole_views(run: RunInput) -> Iterator[None]:
    """Name the file if it does not hold what `run_views` writes."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{run.path / VIEWS}: damaged: {type(error).__name__}: {one_line(error)}; {_AGAIN}") from error


def _run_data(run: RunInput, shown: _Shown) -> dict[str, Any]:
    with _whole_views(run):
        views = None if run.views is None else _views(run.views, shown)
    return {
        "name": run.name,
        "path": str(run.path),
        "start": _start(run.record["recipe"].get("model")),
        "recipe": yaml.safe_dump(run.record["recipe"], sort_keys=False, allow_unicode=True, width=100),
        "fingerprint": run.record["fingerprint"],
        "fields": leaves({key: value for key, value in run.record["fields"].items() if key != "recipe"}),
        "versions": run.record.get("versions", {}),
        "summary": run.summary,
        "curves": _curves(run.path / "metrics.jsonl"),
        "views": views,
        "note": run.note,
    }


def _start(model: Any) -> str | None:  # noqa: ANN401 - whatever JSON holds
    """Return the folder that a run began with, if its recipe names one."""
    named = model.get("attach") if isinstance(model, dict) else model
    return named if isinstance(named, str) else None


def _views(views: dict[str, Any], shown: _Shown) -> dict[str, Any]:
    kind = narrow(len(views["texts"]) + 1)
    plain = ("held_out", "grid", "labelled", "texts", "summary", "lens", "replace", "notes")
    images: dict[str, Any] = {}
    for image in views["images"]:
        name, picture = shown.add(image)
        images[name] = {"picture": picture} | _image(image, kind)
    return {name: views[name] for name in plain if name in views} | {"images": images}


def _image(image: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: image[name] for name in ("grid", "box", "labels", "describing", "generated") if name in image
    }
    for moment in ("before", "after"):
        if moment in image:
            nearest, cosine = image[moment]["nearest"], image[moment]["cosine"]
            found[moment] = {"nearest": packed(nearest, kind), "cosine": packed(cosine, "f32")}
    if "layers" in image:
        found["layers"] = packed(image["layers"], kind)
    if "degree" in image:
        found["degree"] = packed(image["degree"], "f32")
    return found


def _curves(path: Path) -> dict[str, dict[str, list[float]]]:
    """Read, for each metric, the logged steps and values that are finite, and of the rows last measured on."""
    curves: dict[str, dict[str, list[float]]] = {}
    for line in comparable(read_log(path)):
        for name, value in line.items():
            if name not in _NOT_CURVES and isinstance(value, int | float) and math.isfinite(value):
                curve = curves.setdefault(name, {"steps": [], "values": []})
                curve["steps"].append(line["step"])
                curve["values"].append(float(f"{value:.6g}"))
    for curve in curves.values():
        every = -(-len(curve["steps"]) // MOST_POINTS)
        for name, values in curve.items():
            curve[name] = values[:: max(1, every)]
    return curves


def _read(path: Path) -> Image.Image:
    return read_image(path).image


def _said(value: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
