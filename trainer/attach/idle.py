"""Tell of terms that train nothing of a model, because all that they reach is frozen or the forward had no graph."""

import warnings
from collections.abc import Iterable

import torch
from torch import nn

from sea_pipeline.core.errors import UserError
from trainer.attach.families import Parts


def warn_of_idle(parts: Parts, terms: Iterable[str]) -> None:
    """Warn of terms whose gradient reaches no weight that trains.

    BASIC's gradient ends at the projector. SEA's goes on into the tower.
    """
    path = parts.family.projector if parts.family.late else f"model.{parts.family.projector}"
    llm = parts.family.llm.partition(".")[0]
    projector = _trains(parts.projector.parameters())
    beyond = (f"{llm}.", "lm_head.", *parts.family.beside)  # no visual token with a place depends on these
    before_llm = _trains(each for name, each in parts.inner.named_parameters() if not name.startswith(beyond))
    idle = [name for name in terms if not (before_llm if name == "sea" else projector)]
    if not idle:
        return
    frozen = "neither its projector nor its tower trains" if "sea" in idle else "its projector does not train"
    warnings.warn(
        f"attached.loss: {', '.join(idle)}: no effect on the model, because {frozen}; give peft's configuration "
        f"modules_to_save=[{path!r}], or, without peft, call model.{path}.requires_grad_(True) before the optimizer is "
        "made",
        stacklevel=3,
    )


def refuse_without_graph(parts: Parts, visual: torch.Tensor | None) -> None:
    """Refuse visual tokens without a graph if the projector trains.

    Raises:
        UserError: the last forward was not the one that trains.
    """
    if visual is not None and not visual.requires_grad and _trains(parts.projector.parameters()):
        found = "a forward under torch.no_grad() or with adapters off; call loss right after the forward that trains"
        if any(getattr(module, "merged", False) for module in parts.projector.modules()):  # layers of peft
            found = "its adapters merged; call unmerge_adapter() before the forward"
        raise UserError(
            f"attached.loss: expected visual tokens with a graph, because the projector trains; found {found}"
        )


def _trains(parameters: Iterable[nn.Parameter]) -> bool:
    return any(each.requires_grad for each in parameters)
