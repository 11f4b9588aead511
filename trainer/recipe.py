"""What a training run is asked for: a YAML file, checked as a whole, with overrides from the command line.

A recipe has a few groups; each field says what it means and in which unit. Where the papers leave something open, the
field is named after the question, and `preset: paper` sets all of them to the paper's letter.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sea_pipeline.errors import UserError
from sea_pipeline.storage import data_folder

SAMPLES = "samples"
"""As `data.train`: the sample photos that two packages ship, with captions of ours."""

Weight = Annotated[float, Field(ge=0)] | Literal["auto"]


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3, without a dot, for text; here it is a number."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parts(_Group):
    """The parts that a new model is made of, see `init_model`."""

    vision: str = "packaged"
    llm: str = "packaged"
    projector: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"


class Data(_Group):
    """Conversations and images."""

    train: str = SAMPLES
    """A LLaVA `.json` or `.jsonl` file, or `samples`."""
    image_root: Path | None = None
    """Where the paths in the file start; None for the file's own folder."""
    template: Literal["plain", "vicuna_v1", "own"] = "own"
    """`plain` (LLaVA's stage 1: image, caption, newline), `vicuna_v1`, or the LLM's own chat template."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Tokens of a sample at most, the image's included."""
    held_out: Annotated[float, Field(ge=0)] = 0
    """Samples kept from training for the metrics: a share below 1, a number from 1 on. The split depends on the
    samples' ids alone."""
    evaluate: str | None = None
    """Another file with held-out conversations, in place of `held_out`; its images start at `image_root` too."""
    sampling: Literal["random", "modality_length"] = "random"
    """Order in an epoch: a permutation, or LLaVA's stage 2: batches of similar length, with or without images."""
    random_crop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Train on random square crops of at least this share of the largest one's area; needs `labels.transfer`."""
    keep_features: bool = False
    """Keep the frozen tower's output of every image in memory, see `tower_features`; not with `random_crop`."""


class LabelSource(_Group):
    """Per-patch words: a finished folder of `sea-pipeline label`, or what to make."""

    path: Path | None = None
    """None: the newest folder below runs/labels that fits the tower and holds the images; made if there is none."""
    wordlist: str = "2of12"
    encoder: str = "packaged"
    top_n: Annotated[int, Field(ge=1)] = 10
    crops: Annotated[int, Field(ge=0)] = 0
    """Labelled crops of each image (`label --crops`): one of them, or the image itself, is drawn each epoch."""
    transfer: bool = False
    """Carry labels to another grid or crop by their `crop_box`; without it, a difference stops the run."""


class Sea(_Group):
    """SEA's L_a, Eq. 9, and how its pairs are drawn (section 4.2)."""

    weight: Weight = 0
    """lambda of Eq. 11: a number (the paper gives none), or `auto`; 0 switches the term off, and its cost."""
    ratio: Annotated[float, Field(gt=0)] = 0.3
    """With `auto`: what |weight * grad L_a| / |grad L_lm| on the projector is held at."""
    logit_scale_init: float = 0.0
    """log(1 / tau) at the start. The paper's "tau = 0" is read as 0 here: 1 / tau starts at 1; CLIP's is 2.659."""
    logit_scale_learnable: bool = True
    window: Annotated[int, Field(ge=1)] = 2
    """k of the k x k windows, of which each gives one patch."""
    ragged: Literal["keep", "drop"] = "keep"
    """Smaller windows at the edge, where k does not divide the grid."""
    dedupe: Literal["word", "tokens"] = "word"
    """One patch per word in a batch, or per sequence of LLM tokens."""
    gather: bool = False
    """Negatives from the batches of all processes."""
    match_norm: bool = True
    """Without L_lm: in the end, scale the projector so that visual tokens are as long as the LLM's embeddings."""
    word_prefix: Literal["space", "none", "both-mean"] = "space"
    """How a word is spelled for Eq. 8: after a space as in running text, without, or the mean of both."""


class Loss(_Group):
    """loss = lm * L_lm + sea * L_a (Eq. 11)."""

    lm: Annotated[float, Field(ge=0)] = 1.0
    """0: the LLM's layers are not even loaded, the projector trains against the embedding matrix alone."""
    norm: Literal["batch", "token"] = "batch"
    """L_lm as the mean over a micro-batch's tokens, then over micro-batches (LLaVA), or over all tokens of a step."""
    sea: Sea = Sea()
    measure_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two measurements of the gradient norms on the projector; with `auto` the weight follows them."""


class LearningRates(_Group):
    """Peak learning rate of each part; null leaves the part frozen."""

    projector: Annotated[float, Field(gt=0)] | None = 1e-3
    llm: Annotated[float, Field(gt=0)] | None = None
    vision: Annotated[float, Field(gt=0)] | None = None
    logit_scale: Annotated[float, Field(gt=0)] | None = None
    """Of the temperature; null: the projector's."""


class Recipe(_Group):
    """One run of `sea-pipeline train`."""

    name: str = "run"
    preset: Literal["paper"] | None = None
    """`paper`: the paper's letter wherever the field is not set."""
    model: Path | Parts = Parts()
    """A LLaVA folder, or parts that become one."""
    data: Data = Data()
    labels: LabelSource = LabelSource()
    loss: Loss = Loss()
    learning_rates: LearningRates = LearningRates()
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the parts that do not train; `auto`: bfloat16 with `bf16` on CUDA, else float32. What trains is float32."""
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between two evaluations on held-out samples; at the start and the end there is one in any case."""
    seed: int = 0
    training_arguments: dict[str, Any] = {}
    """Anything that `transformers.TrainingArguments` takes, over the defaults in `trainer/loop.py`."""

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        problems = []
        if not (self.loss.lm or self.loss.sea.weight):
            problems.append("loss: every weight is 0; nothing would train")
        if self.loss.sea.weight == "auto" and not self.loss.lm:
            problems.append("loss.sea.weight: auto holds a ratio to L_lm, whose weight is 0; give a number")
        if not self.loss.lm and (self.learning_rates.llm or self.learning_rates.vision):
            problems.append("learning_rates: with loss.lm = 0 only the projector trains; set llm and vision to null")
        if self.data.random_crop and self.loss.sea.weight and not self.labels.transfer:
            problems.append("data.random_crop: labels must follow the crop; set labels.transfer: true")
        if self.data.keep_features and (self.data.random_crop or self.learning_rates.vision):
            problems.append("data.keep_features: the tower's output changes with random_crop or a tower that trains")
        if self.data.random_crop and self.labels.crops:
            problems.append("data.random_crop: crops are random or the labelled ones, not both; set labels.crops: 0")
        if self.learning_rates.projector is None and self.loss.sea.weight:
            problems.append("learning_rates.projector: L_a trains the projector; give it a rate, or sea the weight 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "loss": {
            "sea": {"weight": 1.0, "logit_scale_init": 0.0, "window": 2, "word_prefix": "space", "match_norm": False}
        },
        "data": {"random_crop": None},
    }
}


def read_recipes(path: Path, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """The runs that a recipe file asks for, by name and in order; one named "" unless the file has `stages`.

    `stages` is a mapping of names to what is different in each; every stage but the first starts from the model that
    the one before it left. `base` names another recipe file beside it, whose keys hold where this one's say
    nothing; a stage of null leaves out a stage of the base.

    Args:
        path: a YAML file.
        overrides: `key.inner=value` with the value in YAML; for every stage, or with `stages.NAME.` in front for one.

    Raises:
        UserError: one line with everything that is wrong.
    """
    content = _read(path)
    stages = content.pop("stages", None) or {"": {}}
    if not isinstance(stages, dict) or not all(isinstance(stage, dict | None) for stage in stages.values()):
        raise UserError(f"{path}: stages: expected a mapping of names to keys; found {stages!r:.80}")
    stages = {name: stage for name, stage in stages.items() if stage is not None}
    if not stages:
        raise UserError(f"{path}: stages: expected at least one that is not null; found none")
    common, own = _split_overrides(overrides, set(stages))
    recipes = {}
    for name, stage in stages.items():
        merged = _merge(_merge(content, stage), _merge(common, own.get(name, {})))
        recipes[name] = _recipe(merged, f"{path}: stages.{name}" if name else str(path))
    return recipes


def builtin_recipe(name: str) -> Path:
    """The file of a recipe that comes with the project, such as `demo`."""
    return data_folder("jobs") / f"{name}.yaml"


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's keys, over those of the file that its `base` names."""
    try:
        content = yaml.load(path.read_text("utf-8"), _Yaml)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # dates that are none are ValueErrors, bytes that are no text too
        raise UserError(f"{path}: expected YAML; {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys; found {type(content).__name__}")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or path.resolve() in above:
        raise UserError(f"{path}: base: expected another recipe's file; found {base!r}")
    return _merge(_read(path.parent / base, (*above, path.resolve())), content)


def _recipe(content: dict[str, Any], where: str) -> Recipe:
    preset = content.get("preset")
    try:
        return Recipe.model_validate(_merge(PRESETS.get(preset, {}) if isinstance(preset, str) else {}, content))
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_problem(item) for item in error.errors())) from error


def _problem(item: Any) -> str:  # noqa: ANN401 - pydantic's error
    place = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if not place:
        return str(message)
    if item["type"] == "extra_forbidden":
        return f"{place}: there is no such key"
    return f"{place}: {message[0].lower()}{message[1:]}, found {item['input']!r:.80}"


def _split_overrides(overrides: Sequence[str], stages: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    common: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text}: expected KEY=VALUE, such as loss.sea.weight=10")
        try:
            nested = yaml.load(value, _Yaml)
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"--set {text}: the value is no YAML: {' '.join(str(error).split())}") from error
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        common = _merge(common, nested)
    own = common.pop("stages", {})
    if not isinstance(own, dict):
        raise UserError(f"--set stages: expected stages.NAME.KEY=VALUE; found {own!r:.80}")
    if unknown := set(own) - stages:
        raise UserError(f"--set stages.{sorted(unknown)[0]}: expected one of {sorted(stages - {''})}")
    for name, keys in own.items():
        if not isinstance(keys, dict):
            raise UserError(f"--set stages.{name}: expected stages.{name}.KEY=VALUE; found {keys!r:.80}")
    return common, own


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, key by key."""
    merged = dict(below)
    for key, value in above.items():
        before = merged.get(key)
        nested = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(before, value) if nested else value  # type: ignore[arg-type]
    return merged
