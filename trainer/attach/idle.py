"""Tell of terms that train nothing of a model, because all that they reach is frozen or the forward had no graph."""

import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import nn

from sea_pipeline.core.errors import UserError
from trainer.attach.families import Parts
from trainer.attach.watch import ForwardResults

_Each = TypeVar("_Each", nn.Parameter, nn.Module)


def warn_of_idle(parts: Parts, terms: Iterable[str]) -> None:
    """Warn of terms whose gradient reaches no weight that trains.

    BASIC's gradient ends at the projector. SEA's goes on into the tower.
    """
    path = parts.family.projector if parts.family.late else f"model.{parts.family.projector}"
    idle = [name for name in terms if not _trains(parts, name)]
    if not idle:
        return
    frozen = "neither its projector nor its tower trains" if "sea" in idle else "its projector does not train"
    saved = f"give peft's configuration modules_to_save=[{path!r}]"
    advice = f"{saved}, or, without peft, call model.{path}.requires_grad_(True) before the optimizer is made"
    weights = list(parts.projector.parameters())
    if not weights or not all(map(_is_plain, weights)):
        advice = (
            "the projector is quantised, which no gradient can train; leave it out of the quantisation (in your "
            f"BitsAndBytesConfig: llm_int8_skip_modules=[{path!r}, 'lm_head']), and {saved}; or add the projector's "
            "layers to LoRA's target_modules"
        )
    warnings.warn(f"attached.loss: {', '.join(idle)}: no effect on the model, because {frozen}; {advice}", stacklevel=3)


def refuse_without_graph(parts: Parts, kept: ForwardResults | None, terms: Iterable[str]) -> None:
    """Refuse a forward without a graph, with images or not, if a term's gradient would reach a weight that trains.

    Raises:
        UserError: the last forward was not the one that trains.
    """
    if kept is None or (kept.trains and (kept.visual is None or kept.visual.requires_grad)):
        return
    if any(_trains(parts, name) for name in terms):
        found = (
            "a forward whose images ran under torch.no_grad(), with adapters off, or through nothing that trains"
            if kept.trains
            else "a forward under torch.no_grad(), as generate() and evaluations make it"
        )
        found += "; call loss right after the forward that trains"
        if any(getattr(module, "merged", False) for module in _before_llm(parts, parts.inner.named_modules())):
            found = "merged adapters; call unmerge_adapter() before the forward"
        raise UserError(
            "attached.loss: expected a last forward with a graph, because the projector or the tower trains; found "
            f"{found}"
        )


def _trains(parts: Parts, term: str) -> bool:
    """Tell whether a weight trains that a term's gradient may reach."""
    reached = _before_llm(parts, parts.inner.named_parameters()) if term == "sea" else parts.projector.parameters()
    return any(each.requires_grad and _is_plain(each) for each in reached)


def _is_plain(weight: nn.Parameter) -> bool:
    """Tell whether a weight is not quantised. bitsandbytes may keep four bits in a type of floating point, too."""
    return weight.is_floating_point() and not hasattr(weight, "quant_state")


def _before_llm(parts: Parts, named: Iterable[tuple[str, _Each]]) -> Iterator[_Each]:
    """Leave out what no visual token with a place depends on."""
    beyond = (f"{parts.family.llm.partition('.')[0]}.", "lm_head.", *parts.family.beside)
    return (each for name, each in named if not name.startswith(beyond))
