"""Check what `attach` is given; groups of a recipe's `loss` by the recipe's own classes."""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from pydantic import ValidationError

from sea_pipeline.core.errors import UserError
from sea_pipeline.labels.store import LabelStore
from trainer.attach.families import FAMILIES
from trainer.recipes.files import problems as recipe_problems
from trainer.recipes.recipe import Loss, Recipe

Group = Mapping[str, Any]
WEIGHTS = {"sea": 1.0, "das": 1.0, "sds": 0.01}
"""Default weights of the terms. BASIC's are from its paper; SEA's paper gives none."""
_OF_RUNS = {
    "sea": {
        "ratio": "goes with weight: auto, which attach does not have",
        "match_norm": "scales the projector at a run's end, which attach does not see",
    },
    "das": {"ratio": "goes with weight: auto, which attach does not have"},
    "sds": {"ratio": "goes with weight: auto, which attach does not have"},
    "basic": {},
}
"""Settings that only a run of `sea-pipeline train` can follow, with the reason."""


def check_given(family: str, processor: object, labels: object, settings: Loss, seed: object) -> None:
    """Check what `attach` is given beside the model and the groups.

    Raises:
        UserError: it is of the wrong kind, the processor is of another family, or SEA has no labels.
    """
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise UserError(
            "attach: processor: expected the model's whole processor, with a tokenizer and an image processor; found "
            f"{type(processor).__name__}; give what AutoProcessor.from_pretrained gives"
        )
    home = type(processor).__module__.removeprefix("transformers.models.").partition(".")[0]
    if home in FAMILIES and FAMILIES[home].lay is not FAMILIES[family].lay:
        raise UserError(
            f"attach: processor: expected that of the model, which is a {family}; found {type(processor).__name__}, "
            "which lays images out otherwise; give what AutoProcessor.from_pretrained gives for the model"
        )
    if labels is not None and not isinstance(labels, LabelStore):
        raise UserError(f"attach: labels: expected what open_labels gives; found {type(labels).__name__}")
    if settings.sea.weight and labels is None:
        raise UserError("attach: sea: expected labels; found none; give labels=open_labels(FOLDER)")
    whole_number("attach: seed", seed)


def whole_number(name: str, value: Any) -> int:  # noqa: ANN401 - whatever a user gives
    """Return a number of which a seed is made.

    Raises:
        UserError: it is not a whole number of 0 or more.
    """
    if not isinstance(value, Integral) or int(value) < 0:
        raise UserError(f"{name}: expected a whole number, 0 or more; found {value!r:.80}")
    return int(value)


def check_one_device(model: object) -> None:
    """Refuse BASIC on a model whose layers lie on several devices.

    Raises:
        UserError: `device_map` has several.
    """
    devices = sorted({str(device) for device in getattr(model, "hf_device_map", {}).values()})
    if len(devices) > 1:
        raise UserError(
            f"attach: das and sds: expected the model on one device; found device_map over {', '.join(devices)}; load "
            'it with device_map={"": 0}, or train with FSDP'
        )


def read_state(state: object, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of a state of `Attached` that has these names.

    Raises:
        UserError: it has other names, or a value of another kind.
    """
    wanted = sorted(names)
    found: object = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
    if not isinstance(state, Mapping) or found != wanted:
        raise UserError(
            f"attached.load_state_dict: expected a state of {', '.join(wanted)}; found {found!s:.80}; give what "
            "state_dict() of the same terms returned"
        )
    whole_number("attached.load_state_dict: step", state["step"])
    scale = state.get("log_scale", 0.0)
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise UserError(f"attached.load_state_dict: log_scale: expected a finite number; found {scale!r:.80}")
    return dict(state)


def read_settings(sea: Group | None, das: Group | None, sds: Group | None, basic: Group | None) -> Loss:
    """Read the settings of the terms.

    A term whose group is None is off, but `basic` alone switches on both of BASIC's terms.

    Raises:
        UserError: a setting is wrong. One line names everything that is.
    """
    groups: dict[str, Group | None] = {"sea": sea, "das": das, "sds": sds, "basic": basic}
    if basic is not None and das is None and sds is None:
        groups |= {"das": {}, "sds": {}}
    given = {name: group for name, group in groups.items() if group is not None}
    problems = []
    for name, group in given.items():
        if not isinstance(group, Mapping):
            raise UserError(f"attach: {name}: expected keys and values, such as {{'weight': 1.0}}; found {group!r:.80}")
        problems += [f"loss.{name}.{key}: {why}; leave it out" for key, why in _OF_RUNS[name].items() if key in group]
        if group.get("weight") == "auto":
            problems.append(
                f"loss.{name}.weight: auto follows L_lm's gradient, which attach does not have; give a number"
            )
    weighted = {
        name: ({"weight": WEIGHTS[name]} if name in WEIGHTS else {}) | dict(group) for name, group in given.items()
    }
    try:
        loss = Recipe.model_validate({"loss": weighted}).loss
    except ValidationError as error:
        raise UserError("; ".join([recipe_problems(error, "attach", {}), *problems])) from error
    problems += _of_basic(loss)
    if not loss.terms():
        problems.append("no term is on; give sea, das, sds or basic, with a weight above 0")
    if problems:
        raise UserError(f"attach: {'; '.join(problems)}")
    return loss


def _of_basic(loss: Loss) -> list[str]:
    found = []
    if loss.basic.lens != "none":
        found.append("loss.basic.lens: is fitted before a run of sea-pipeline train; set it to none")
    if loss.basic.text != "all":
        found.append("loss.basic.text: prompt needs to know what trains before the LLM runs; set it to all")
    return found
