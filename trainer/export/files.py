"""Write the small files of an export, which are tokenizer, processor, templates and configurations."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sea_pipeline.storage.json_files import read_json
from trainer.export import transformers4
from trainer.model.chat_template import chat_template, turn_end, with_marks
from trainer.model.llava_folder import ALIGNMENT
from trainer.model.load import ModelFolder
from trainer.model.prompts import GENERATION
from trainer.model.sentence_piece import piece_model, same_tokenizer
from trainer.model.tokenizer import begin_with_bos, check_saved_tokenizer, pad_left, with_image_token

_PRIVATE = ("_name_or_path", "is_local", "local_files_only", "name_or_path")
"""Keys of configurations that hold paths of the machine that wrote them."""


def write_texts(folder: ModelFolder, scratch: Path, *, processor: bool) -> list[str]:
    """Write the tokenizer, the generation configuration and, with `processor`, the processor.

    All three know where a turn ends. The template begins a conversation as training began it, and a batch of prompts is
    padded on the left. A tokenizer of SentencePiece's kind is written as `tokenizer.model`, too.

    Returns:
        What the user of the folder must know, one sentence each.

    Raises:
        UserError: the tokenizer cannot be saved as it is, or its template cannot render a conversation.
    """
    tokenizer, notes = with_image_token(folder.processor.tokenizer), []
    if not tokenizer.chat_template:
        tokenizer.chat_template = chat_template(None)
        notes.append("The model has no chat template; vicuna_v1, LLaVA-1.5's, was added.")
    tokenizer.chat_template = with_marks(tokenizer.chat_template)
    folder.processor.tokenizer = tokenizer = begin_with_bos(tokenizer)
    folder.processor.chat_template = tokenizer.chat_template
    pad_left(tokenizer)
    if not GENERATION.search(tokenizer.chat_template):
        notes.append("The chat template does not mark its answers: it changes earlier turns as later ones come.")
    tokenizer.eos_token = turn_end(tokenizer, str(folder.path)) or tokenizer.eos_token
    (folder.processor if processor else tokenizer).save_pretrained(scratch)
    if (pieces := piece_model(tokenizer)) is not None:
        (scratch / "tokenizer.model").write_bytes(pieces)
    check_saved_tokenizer(scratch, tokenizer, str(folder.path))
    generation = read_json(folder.path / "generation_config.json", absent={})
    eos = generation.pop("eos_token_id", None)
    if ends := {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}:
        generation["eos_token_id"] = sorted(ends)
    (scratch / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
    return notes


def spell(scratch: Path, names: int | None, *, rescaled: bool = False) -> str:
    """Rewrite configurations in the spelling of transformers 4 or 5, and make a version that would misread them stop.

    Args:
        scratch: a folder as transformers 5 writes it.
        names: the version whose spelling the folder gets; None chooses 4's if it can express the configuration.
        rescaled: whether the projector was divided by sqrt(width), see `transformers4.scales_inputs`.

    Returns:
        The libraries that read the folder, as a line.

    Raises:
        UserError: 4's spelling cannot express it.
    """
    config = read_json(scratch / "config.json")
    config.pop("pruned_heads", None)  # of an earlier export, see `transformers4.refused_by_4`
    old = names == 4 or (names is None and transformers4.can_spell_ropes(config))
    scaled = transformers4.scales_inputs(config.get("text_config", {}).get("model_type", ""))
    if old:
        config = transformers4.config(config)
        file = scratch / "tokenizer_config.json"
        write_json(file, transformers4.tokenizer_config(read_json(file)))
        if (file := scratch / "processor_config.json").is_file():
            processor, image = transformers4.processor_configs(read_json(file))
            write_json(file, processor)
            write_json(scratch / "preprocessor_config.json", image)
    if rescaled:
        line = (
            f"this folder is for transformers before {transformers4.SCALING_WORDS}; export it without "
            "--rescale-projector for others"
        )
        config = transformers4.refused_by_5(config, line)
    elif scaled or not old:
        advice = f"export it with {'--rescale-projector' if scaled else '--names 4'} for that"
        if not transformers4.can_spell_ropes(config):
            advice = "its configuration cannot express this LLM's ropes, so use transformers 5"
        config = transformers4.refused_by_4(config, f"this folder is not for transformers 4; {advice}")
    write_json(scratch / "config.json", config)
    return transformers4.readers(config, by_4=old and (rescaled or not scaled), by_others=not rescaled, names=names)


def read_again(scratch: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Check that AutoTokenizer reads the same tokenizer back from a complete folder.

    For some types of LLMs transformers 5 ignores the saved class and takes its own.

    Returns:
        One sentence for the folder's user if AutoTokenizer gives other ids; else nothing.
    """
    read = AutoTokenizer.from_pretrained(scratch)
    if same_tokenizer(read, tokenizer):
        return []
    return [
        f"AutoTokenizer of transformers 5 makes a {type(read).__name__} of the tokenizer, which gives other ids; load "
        "it with PreTrainedTokenizerFast.from_pretrained."
    ]


def clean(scratch: Path) -> None:
    """Remove paths of this machine from the configurations."""
    for name in ("config.json", "tokenizer_config.json"):
        write_json(scratch / name, _without_private(read_json(scratch / name)))


def _without_private(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(value, dict):
        return value
    return {name: _without_private(one) for name, one in value.items() if name not in _PRIVATE}


def alignment(folder: ModelFolder) -> dict[str, Any]:
    """Build the content of `alignment.json`, with parts by name instead of by local path."""
    stated = read_json(folder.path / ALIGNMENT, absent={"version": 1, "vocabulary": folder.vocabulary})
    named = {name: Path(str(stated[name])) for name in ("vision", "llm") if name in stated}
    return stated | {name: path.name for name, path in named.items() if path.is_absolute()}


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write an object to a JSON file that people can read, too."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
