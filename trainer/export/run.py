"""Export a run or a model folder to a folder for other programs (`sea-pipeline export` as a function)."""

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.publish import publish_folder
from trainer.export import transformers4
from trainer.export.checks import check_export
from trainer.export.files import alignment, clean, read_again, spell, write_json, write_texts
from trainer.export.model_card import model_card
from trainer.export.run_model import RunModel, open_source
from trainer.export.settings import ExportSettings as ExportSettings
from trainer.export.settings import Kind
from trainer.model import hub
from trainer.model.borders import border, saving
from trainer.model.llava_folder import ALIGNMENT
from trainer.model.llm_weights import stored_names, unread
from trainer.model.parts import quiet
from trainer.model.pretrained import some
from trainer.model.tensor_files import LLM, PROJECTOR, save_tensors, write_weights
from trainer.towers import OURS


@dataclass
class Exported:
    """What an export wrote."""

    out: Path
    kind: Kind
    what: str
    tensors: int
    bytes: int
    reader: str
    notes: list[str] = field(default_factory=list)
    """What the user of the folder must know, one sentence each."""
    pushed: str | None = None
    """The address of the upload."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields for machines, with `out` as `folder`."""
        fields = asdict(self)
        return {"folder": str(fields.pop("out")), **fields}


def export_model(settings: ExportSettings) -> Exported:
    """Write the folder as a whole or not at all, and upload it if that is asked for.

    Weights are copied from file to file, see `write_weights` for the memory. All weights are in memory at once for a
    step of a run that trained an LLM whose weights have another layout in files than in memory, as Mixtral's.

    Raises:
        UserError: the source is no LLaVA folder and no finished run, or has no such checkpoint; `out` is not empty;
            4's names cannot express the model, or its projector needs no rescaling; the upload failed, in which case
            the folder stays.
    """
    check_export(settings)
    source = open_source(settings.source, settings.checkpoint)
    folder = source.folder
    tower = folder.config.vision_config.model_type
    settings = _for_reader(settings, tower, folder.config.text_config.model_type)
    kinds = {"model": _write_model, "llm": _write_llm, "projector": _write_projector}
    with saving(settings.out, "cannot be made"), publish_folder(settings.out) as scratch, quiet():
        done = kinds[settings.kind](source, settings, scratch)
        done.notes[:0] = source.notes
        if settings.kind == "model" and tower in OURS:
            done.notes.append(f"transformers lacks the tower {tower!r}: `import trainer.towers` before loading.")
        card = model_card(
            folder, settings.source, done.kind, done.what, done.reader, done.notes, checkpoint=source.step
        )
        (scratch / "README.md").write_text(card, "utf-8")
    if settings.push is not None:
        done.pushed = hub.push(settings.out, settings.push)
    return done


def _for_reader(settings: ExportSettings, tower: str, llm: str) -> ExportSettings:
    """Check the settings against the model, and replace `compat` by what it stands for."""
    if settings.kind != "projector" and llm not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"{settings.source}: expected an LLM of a type that is a causal LM in transformers; found {llm!r}; export "
            "with --projector-only"
        )
    names = settings.names or settings.compat
    rescale = settings.rescale_projector or (
        settings.compat == 4 and settings.kind == "model" and transformers4.scales_inputs(llm)
    )
    if rescale and (settings.kind != "model" or not transformers4.scales_inputs(llm)):
        raise UserError(
            "--rescale-projector: makes a difference only to a whole model, with an LLM all of whose inputs "
            f"transformers 4 multiplies by sqrt(width), such as Gemma; found {llm!r}; leave it out"
        )
    if settings.kind == "model" and (names == 4 or rescale):
        transformers4.check_tower(tower, "--names 4" if names == 4 else "--rescale-projector")
    if rescale and names == 5:
        raise UserError(
            "--rescale-projector, --names 5: expected one of them; versions that need the first do not read 5's names"
        )
    return settings.model_copy(update={"names": names, "rescale_projector": rescale, "compat": None})


# The whole model


def _write_model(source: RunModel, settings: ExportSettings, scratch: Path) -> Exported:
    folder, config = source.folder, source.folder.config
    llm, tower, width = config.text_config.model_type, config.vision_config.model_type, config.text_config.hidden_size
    notes = write_texts(folder, scratch, processor=True)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.text_config.architectures = [_causal_lm(llm)]
    config.save_pretrained(scratch)
    weights = source.weights
    if settings.names != 5:
        weights = list(transformers4.renamed(weights, tower))
    if settings.rescale_projector:
        weights = list(transformers4.rescaled(weights, width))
    tensors, size = write_weights(weights, scratch)
    _check_read(LlavaForConditionalGeneration, scratch, settings)
    readers = spell(scratch, settings.names, rescaled=settings.rescale_projector)
    extra = alignment(folder)
    scaling = (
        f"transformers before {transformers4.SCALING_WORDS} multiplies all inputs of {llm!r} by sqrt({width}), visual "
        "tokens too"
    )
    if settings.rescale_projector:
        extra["inputs_scaled"] = True
        notes.append(
            f"{scaling}: the projector's last layer is divided by it here. transformers "
            f"{transformers4.SCALING_WORDS} or newer and vLLM do not, and refuse this folder."
        )
    elif transformers4.scales_inputs(llm):
        notes.append(
            f"{scaling}. Of these, version 4 refuses this folder, and version 5 misreads it without a word; export "
            "with --rescale-projector for them."
        )
    if transformers4.is_converted(llm):
        notes.append(
            f"transformers 5 before {transformers4.CONVERTING_NESTED} does not convert the weights of {llm!r} inside a "
            "LLaVA: it warns of missing ones, and draws them at random."
        )
    write_json(scratch / ALIGNMENT, extra)
    clean(scratch)
    what = f"LLaVA: {tower}, {_causal_lm(llm)}"
    return Exported(settings.out, "model", what, tensors, size, readers, notes)


# Parts of it


def _write_llm(source: RunModel, settings: ExportSettings, scratch: Path) -> Exported:
    """Write `language_model` and `lm_head` as a causal LM."""
    folder, config = source.folder, source.folder.config.text_config
    notes = write_texts(folder, scratch, processor=False)
    config.architectures = [_causal_lm(config.model_type)]
    with _reading(settings):
        body, head = stored_names(config)
    config.dtype = config.dtype or folder.config.dtype
    config.save_pretrained(scratch)
    entries = [
        entry._replace(name=_renamed(entry.name.removeprefix(LLM), body, head))
        for entry in source.weights
        if entry.name.startswith(LLM)
    ]
    tensors, size = write_weights(entries, scratch)
    _check_read(AutoModelForCausalLM, scratch, settings)
    readers = spell(scratch, settings.names)
    clean(scratch)
    notes += read_again(scratch, folder.processor.tokenizer)
    return Exported(settings.out, "llm", config.architectures[0], tensors, size, readers, notes)


def _write_projector(source: RunModel, settings: ExportSettings, scratch: Path) -> Exported:
    """Write the projector with LLaVA's names, `model.mm_projector.0.weight` and so on.

    A linear projector's names have no number.
    """
    folder = source.folder
    _check_projector(source, settings)
    layers = {"linear_1": "0.", "linear_2": "2."}
    stored = {}
    for entry in source.weights:
        layer, _, name = entry.name.removeprefix(PROJECTOR).partition(".")
        if entry.name.startswith(PROJECTOR) and layer in layers:
            stored[f"model.mm_projector.{layers[layer]}{name}"] = entry.read().clone()
    for layer in layers.values():  # LLaVA's layers have biases, and it loads no fewer weights than it has
        weight = stored[f"model.mm_projector.{layer}weight"]
        stored.setdefault(f"model.mm_projector.{layer}bias", weight.new_zeros(len(weight)))
    shape = " x ".join(str(size) for size in stored["model.mm_projector.0.weight"].shape[::-1])
    if folder.linear_projector:
        stored = _as_one_layer(stored)
    if settings.format == "bin":
        torch.save(stored, scratch / "mm_projector.bin")
    else:
        save_tensors(stored, scratch / "mm_projector.safetensors", metadata={"format": "pt"})
    size = sum(value.nbytes for value in stored.values())
    what = f"projector, {'linear' if folder.linear_projector else 'mlp2x_gelu'}, first layer {shape}"
    return Exported(settings.out, "projector", what, len(stored), size, "LLaVA's own code")


def _as_one_layer(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Multiply out two linear layers: W2 W1 and W2 b1 + b2. Ours has the identity as its second."""
    weight, bias = (stored[f"model.mm_projector.0.{name}"] for name in ("weight", "bias"))
    second, added = (stored[f"model.mm_projector.2.{name}"].double() for name in ("weight", "bias"))
    return {
        "model.mm_projector.weight": (second @ weight.double()).to(weight.dtype),
        "model.mm_projector.bias": (second @ bias.double() + added).to(bias.dtype),
    }


def _check_projector(source: RunModel, settings: ExportSettings) -> None:
    """Check that the projector is one that LLaVA's own code has, and that all its weights are there."""
    config = source.folder.config
    if (act := config.projector_hidden_act) not in ("gelu", "linear"):
        raise UserError(
            f"{settings.source}: expected projector_hidden_act gelu or linear, which LLaVA's own code has; found "
            f"{act!r}; export without --projector-only"
        )
    if not isinstance(chosen := config.vision_feature_layer, int) and len(chosen) != 1:
        raise UserError(
            f"{settings.source}: expected one vision_feature_layer, as LLaVA's own code has; found {chosen!r}; "
            "export without --projector-only"
        )
    with torch.device("meta"):
        projector = LlavaMultiModalProjector(config)
    wanted = {PROJECTOR + name: value.shape for name, value in projector.state_dict().items()}
    found = {entry.name: entry.read().shape for entry in source.weights if entry.name.startswith(PROJECTOR)}
    if differing := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise UserError(
            f"{settings.source}: expected the projector's weights as its config.json describes them; found others, "
            f"{some(differing)}; give a model of sea-pipeline init"
        )


def _renamed(name: str, body: str, head: str) -> str:
    part, _, rest = name.partition(".")
    own = {"model": body, "lm_head": head}.get(part, part)
    return f"{own}.{rest}"


def _check_read(kind: Any, scratch: Path, settings: ExportSettings) -> None:  # noqa: ANN401 - a class of transformers
    """Check that the class that reads the export has the weights that are in it, no more and no fewer."""
    with _reading(settings):
        lost = unread(kind, scratch)
    if lost:
        raise UserError(
            f"{settings.source}: expected the weights that transformers reads in its export; found others, "
            f"{some(lost)}; give a model of sea-pipeline init from an LLM that fits"
        )


def _reading(settings: ExportSettings) -> AbstractContextManager[None]:
    return border(f"{settings.source}: its export could not be read", "give a model of sea-pipeline init", given=True)


def _causal_lm(model_type: str) -> str:
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
