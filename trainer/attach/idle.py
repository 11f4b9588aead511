"""Warn of terms that train nothing of a model, because all that they reach is frozen."""

import warnings
from collections.abc import Iterable

from torch import nn

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


def _trains(parameters: Iterable[nn.Parameter]) -> bool:
    return any(each.requires_grad for each in parameters)
