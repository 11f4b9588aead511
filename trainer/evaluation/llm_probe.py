"""Measure what an LLM's layers make of plain text (`sea-pipeline probe --llm` as a function).

It writes nothing but the cache of lenses.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.labels.checks import check_llm_probe
from sea_pipeline.labels.settings import LlmProbeSettings as LlmProbeSettings
from sea_pipeline.storage.json_files import read_json
from trainer.attach.folder import open_existing_folder
from trainer.evaluation.existing_run import load_attached
from trainer.evaluation.premise import Control, Lenses, TextNearness, control, is_near, look_at_text, text_rows, verdict
from trainer.losses.lens import LensKind
from trainer.losses.supervision import decoder_layers, layers_of
from trainer.model.existing_folder import is_existing
from trainer.model.llm_weights import body
from trainer.model.load import load_model, open_model_folder
from trainer.model.parts import load_llm, quiet
from trainer.model.reader import Reader
from trainer.model.terms import reader_of
from trainer.model.text_lens import text_lenses
from trainer.recipes.recipe import Basic, LearningRates, Recipe

KINDS: tuple[LensKind, ...] = ("none", "ridge", "centred", "shuffled")
_LEAST = 16
"""Least number of tokens for figures that mean something."""


@dataclass(frozen=True)
class LlmProbeResult:
    """The result of a probe, see `Nearness` and `Control`."""

    llm: str
    text: str
    tokens: int
    """Number of tokens of the text that were measured."""
    vocabulary: int
    k: int
    layer_weights: str
    on_text: TextNearness
    control: dict[LensKind, Control]

    def verdicts(self) -> list[str]:
        """Judge V^ without a lens and V^ through the ridge lens."""
        kinds: tuple[LensKind, ...] = ("none", "ridge")
        return [verdict(self.on_text.refined[kind], self.control[kind], self.vocabulary, kind) for kind in kinds]

    def to_json(self) -> dict[str, Any]:
        """Return all figures and the verdicts, for machines."""
        found = asdict(self) | {"on_text": None}
        del found["on_text"], found["control"]
        layers = [{"layer": number, **near._asdict()} for number, near in enumerate(self.on_text.layers)]
        refined = {
            kind: {**near._asdict(), "near": is_near(near), "das": self.control[kind]._asdict()}
            for kind, near in self.on_text.refined.items()
        }
        return found | {"layers": layers, "refined": refined, "verdicts": self.verdicts()}


def probe_llm(settings: LlmProbeSettings, reporter: Reporter = SILENT) -> LlmProbeResult:
    """Let an LLM read text, and compare its layers' outputs and V^ with the tokens' own embeddings.

    Raises:
        UserError: the LLM or the text cannot be read, the text is too short, or the LLM has fewer layers than are
            asked for.
    """
    text = check_llm_probe(settings)
    device = torch.device(resolve_device(settings.device))
    reader = _reader(settings.llm, device)
    basic = Basic(layers=settings.layers, layer_weights=settings.layer_weights)
    k = layers_of(basic, reader.llm)
    rows = text_rows(reader, text)
    tokens = int(reader.columns(rows).sum())
    if tokens < _LEAST:
        raise UserError(f"--text {settings.text}: expected {_LEAST} tokens or more; found {tokens}; give a longer text")
    lenses: Lenses = {"none": None, **text_lenses(reader, KINDS, k, reporter)}
    on_text = look_at_text(reader, rows, basic, lenses)
    source = "plain English of ours" if settings.text is None else str(settings.text)
    return LlmProbeResult(
        settings.llm, source, tokens, reader.vocabulary, k, settings.layer_weights, on_text,
        control(reader, basic, lenses),
    )  # fmt: skip


def _reader(llm: str, device: torch.device) -> Reader:
    """Load the LLM of a LLaVA folder, that of an existing model's folder, or an LLM by itself."""
    path = Path(llm)
    said = read_json(path / "config.json", absent={}) if path.is_dir() else {}
    if path.is_dir() and is_existing(path):
        existing = open_existing_folder(path)
        reader = reader_of(load_attached(existing, None).to(device), existing)
    elif said.get("model_type") == "llava" or (not said and (path / "model" / "config.json").is_file()):
        folder = open_model_folder(path)
        llava = load_model(folder, Recipe(model=path, learning_rates=LearningRates(projector=None)))
        llava.llm.to(device)
        reader = reader_of(llava, folder)
    else:
        with quiet():
            part = load_llm(llm, torch.float32)
        model: Any = part.model
        model.to(device)
        embed = model.get_input_embeddings()
        ids = max(part.tokenizer.get_vocab().values()) + 1
        reader = Reader(body(model), embed, part.tokenizer, min(ids, embed.num_embeddings))
    decoder_layers(reader.llm, f"--llm {llm}", "give another LLM")
    return reader
