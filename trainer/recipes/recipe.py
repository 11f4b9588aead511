"""Declares what a training run is asked for, and checks it as a whole; `files.py` reads it.

A recipe has a few groups, and each field says what it means and in which unit. If the papers leave something open, the
field is named after the question. `preset: paper` sets all of SEA's as we read it; docs/readings.md lists them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from sea_pipeline.core.settings import Strict
from trainer.recipes.attach_keys import problems_of_attach

SAMPLES = "samples"
"""As `data.train`: the sample photos that two packages ship, with captions of ours."""

Weight = Annotated[float, Field(ge=0)] | Literal["auto"]
AspectRatio = Literal["square", "pad"]
"""LLaVA's `image_aspect_ratio`: the tower's own image processor alone, or after bars that make a square."""


def _step(value: object) -> object:
    if (type(value) is int and value >= 1) or (type(value) is float and 0 < value < 1):
        return value
    raise ValueError("expected a step, such as 500, or a share of the run below 1, such as 0.5")


Step = Annotated[int | float, BeforeValidator(_step)]
"""Of a run: a number of optimizer steps, or a share of all of them below 1."""


class Parts(Strict):
    """The parts that a new model is made of, see `init_model`."""

    vision: str = "packaged"
    llm: str = "packaged"
    projector: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"


class ExistingModel(Strict):
    """A vision-language model of another family, which keeps its own form; docs/attach.md lists the families."""

    attach: Path
    """A folder that transformers loads with AutoModelForImageTextToText and AutoProcessor."""


def _model_kind(value: object) -> str | None:
    if isinstance(value, ExistingModel) or (isinstance(value, Mapping) and "attach" in value):
        return ExistingModel.__name__
    if isinstance(value, Parts | Mapping):
        return Parts.__name__
    return "folder" if isinstance(value, str | Path) else None


Model = Annotated[
    Annotated[Path, Tag("folder")]
    | Annotated[Parts, Tag(Parts.__name__)]
    | Annotated[ExistingModel, Tag(ExistingModel.__name__)],
    Discriminator(_model_kind, "model_kind", "Input should be a path or keys and values"),
]


class Data(Strict):
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
    """Order in an epoch: a permutation, or LLaVA's stage 2: a step's samples have images or all have none, and its
    micro-batches are alike long."""
    image_aspect_ratio: AspectRatio | None = None
    """`square`: as the tower's own image processor does (CLIP's crops the centre); `pad`, LLaVA-1.5's stage 2: bars of
    the mean colour first; None: as the model folder does. The folder that is left does the same."""
    random_crop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Train on random square crops of at least this share of the largest one's area; needs `labels.transfer`."""
    bad_rows: Literal["stop", "leave_out"] = "stop"
    """What becomes of rows that cannot be trained, such as those without an answer within `max_length`, or whose image
    is missing or unreadable: the run stops before its first step and names them all, or does without them, as LLaVA
    does, and counts them in its summary."""
    keep_features: bool = False
    """Keep the frozen tower's output of every image in memory, see `tower_features`; not with `random_crop`."""


class LabelSource(Strict):
    """Per-patch words: a finished folder of `sea-pipeline label`, or what to make."""

    path: str | Path | None = None
    """None: the newest folder below runs/labels that fits the tower, holds the images and is of the list, encoder and
    n that are named here; made if there is none."""
    wordlist: str = "2of12"
    encoder: str = "packaged"
    top_n: Annotated[int, Field(ge=1)] = 10
    crops: Annotated[int, Field(ge=0)] = 0
    """Labelled crops of each image (`label --crops`): one of them, or the image itself, is drawn each epoch."""
    transfer: bool = False
    """Carry labels to another grid or crop by their `crop_box`; without it, a difference stops the run."""


class Sea(Strict):
    """SEA's L_a, Eq. 9, and how its pairs are drawn (section 4.2)."""

    weight: Weight = 0.0
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
    """Without L_lm and L_sds, which both see lengths: in the end, scale the projector so that visual tokens are as long
    as the LLM's embeddings."""
    word_prefix: Literal["space", "none", "both-mean"] = "space"
    """How a word is spelled for Eq. 8: after a space as in running text, without, or the mean of both."""


class Das(Strict):
    """BASIC's L_das, Eq. 6: the direction of visual tokens."""

    weight: Weight = 0.0
    """lambda_1 of BASIC's Eq. 8, 1 in the paper; `auto` as for SEA; 0 switches the term off, and its cost."""
    ratio: Annotated[float, Field(gt=0)] = 0.3
    """With `auto`: what |weight * grad L_das| / |grad L_lm| on the projector is held at."""


class Sds(Strict):
    """BASIC's L_sds, Eq. 7: the distribution of visual tokens over the vocabulary."""

    weight: Weight = 0.0
    """lambda_2 of BASIC's Eq. 8, 0.01 in the paper; `auto` as for SEA; 0 switches the term off, and its cost."""
    ratio: Annotated[float, Field(gt=0)] = 0.3
    """With `auto`: what |weight * grad L_sds| / |grad L_lm| on the projector is held at."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits of both distributions; the paper has none. V^ is often so long that P is nearly one-hot."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products with the vocabulary; `auto`: bfloat16 with `bf16`, else float32."""


class Basic(Strict):
    """How BASIC's supervision is made of the LLM's own layers (section 4.1); these are options of `teacher`, too."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    layers: Annotated[int, Field(ge=1)] | None = None
    """k of Eq. 4 and 5. Default: half of the LLM's layers."""
    layer_weights: Literal["inc", "const", "dec"] = "inc"
    """w_i of Eq. 4: growing as i^2, equal, or falling."""
    # Falling as (k + 1 - i)^2.
    degree: Literal["auto", "equal"] = "auto"
    """a_i of Eq. 5: by the text's attention, or all the same."""
    # All the same: 1 / m.
    text: Literal["all", "prompt"] = "all"
    """Whose attention: all text behind the image, or the untrained."""
    normalise: Literal["none", "unit"] = "none"
    """unit: every layer's tokens get the same length before the sum."""
    # The mean length of the LLM's embeddings. Later layers' tokens are longer, and mostly so in one or two dimensions.
    outliers: Annotated[int, Field(ge=0)] = 0
    """So many dimensions of the supervision, those of the largest mean square in a batch, are set to 0."""
    lens: Literal["none", "ridge", "centred", "shuffled"] = "none"
    """Ours, not the paper's. `ridge`: each layer's visual tokens go through a linear map to the LLM's embeddings before
    the sum, ridge regression from the states of plain text to its tokens' own embeddings, fitted once on the LLM as it
    is before the run. Controls: `centred` moves the mean alone, `shuffled` is fitted with the tokens shuffled."""


class Loss(Strict):
    """loss = lm * L_lm + sea * L_a (SEA's Eq. 11) + das * L_das + sds * L_sds (BASIC's Eq. 8).

    L_a is a mean over micro-batches, L_das and L_sds are over those that have images.
    """

    lm: Annotated[float, Field(ge=0)] = 1.0
    """0: the LLM's layers are not even loaded, the projector trains against the embedding matrix alone."""
    norm: Literal["batch", "token"] = "batch"
    """L_lm as the mean over a micro-batch's tokens, then over micro-batches (LLaVA), or over all tokens of a step."""
    sea: Sea = Sea()
    das: Das = Das()
    sds: Sds = Sds()
    basic: Basic = Basic()
    measure_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two measurements of the gradient norms on the projector; with `auto` the weight follows them."""

    def terms(self) -> dict[str, Sea | Das | Sds]:
        """Return the terms besides L_lm that are switched on, by name."""
        every: dict[str, Sea | Das | Sds] = {"sea": self.sea, "das": self.das, "sds": self.sds}
        return {name: term for name, term in every.items() if term.weight}


class LearningRates(Strict):
    """Peak learning rate of each part; null leaves the part frozen."""

    projector: Annotated[float, Field(gt=0)] | None = 1e-3
    llm: Annotated[float, Field(gt=0)] | None = None
    vision: Annotated[float, Field(gt=0)] | None = None
    logit_scale: Annotated[float, Field(gt=0)] | None = None
    """Of the temperature; null: the projector's."""


class Lora(Strict):
    """Adapters on the LLM, with LLaVA-1.5's values; `learning_rates.llm` is theirs, the LLM's own weights are frozen.

    They are merged into the weights of the model folder. BASIC's targets are those of the adapted LLM.
    """

    rank: Annotated[int, Field(ge=1)] = 128
    alpha: Annotated[float, Field(gt=0)] = 256
    """What the adapters compute is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Of what enters an adapter."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Every linear layer but the head, or names such as q_proj."""


class Recipe(Strict):
    """One run of `sea-pipeline train`."""

    name: str = "run"
    preset: Literal["paper"] | None = None
    """`paper`: our reading of SEA's paper, L_a switched on, wherever the field is not set."""
    model: Model = Parts()
    """A LLaVA folder, parts that become one, or `attach: FOLDER` for a model of another family."""
    data: Data = Data()
    labels: LabelSource = LabelSource()
    teacher: str | Path | None = None
    """A finished folder of `sea-pipeline teacher`, or its URL: BASIC's supervision is read from it, not computed."""
    loss: Loss = Loss()
    learning_rates: LearningRates = LearningRates()
    lora: Lora | None = None
    """Train adapters in place of the LLM's own weights; `lora: {}` has LLaVA's values."""
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the parts that do not train; `auto`: bfloat16 with `bf16` on CUDA, else float32. What trains is float32."""
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between two evaluations on held-out samples; at the start and the end there is one in any case."""
    keep_checkpoints: tuple[Step, ...] = ()
    """Steps whose weights are kept for good below `kept/`, for `export --checkpoint`: they hold what the model folder
    would, without the optimizer, so that a run does not go on from them. The last step's are the model folder."""
    seed: int = 0
    training_arguments: dict[str, Any] = Field(default_factory=dict)
    """Anything that `transformers.TrainingArguments` takes, over the defaults in `trainer/training/arguments.py`."""

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        problems = []
        terms = self.loss.terms()
        basic = [name for name in terms if name != "sea"]
        if not (self.loss.lm or terms):
            problems.append("loss: every weight is 0; nothing would train")
        problems += [
            f"loss.{name}.weight: auto holds a ratio to L_lm, whose weight is 0; give a number"
            for name, term in terms.items()
            if term.weight == "auto" and not self.loss.lm
        ]
        if basic and not self.loss.lm and self.teacher is None:
            problems.append(f"loss.{basic[0]}: without L_lm the LLM's layers do not run; set teacher to cached targets")
        if basic and self.teacher is not None and (self.labels.crops or self.data.random_crop):
            problems.append("teacher: its targets are of whole images; set labels.crops: 0 and no data.random_crop")
        if basic and self.teacher is not None and self.loss.basic.lens != "none":
            problems.append(
                "loss.basic.lens: is for supervision that the run computes, and a teacher's targets have none; set it "
                "to none, or teacher to null"
            )
        if not self.loss.lm and (self.learning_rates.llm or self.learning_rates.vision):
            problems.append("learning_rates: with loss.lm = 0 only the projector trains; set llm and vision to null")
        if self.lora is not None and not (self.learning_rates.llm and self.loss.lm):
            problems.append("lora: its adapters train with the LLM; set learning_rates.llm (LLaVA: 2e-4) and loss.lm")
        if self.data.random_crop and self.loss.sea.weight and not self.labels.transfer:
            problems.append("data.random_crop: labels must follow the crop; set labels.transfer: true")
        if self.data.image_aspect_ratio == "pad":
            problems += self._problems_of_bars()
        if isinstance(self.model, ExistingModel):
            of_attach = problems_of_attach(self)
            keys = {problem.partition(":")[0] for problem in of_attach}
            problems = of_attach + [problem for problem in problems if problem.partition(":")[0] not in keys]
        if self.data.keep_features and (self.data.random_crop or self.learning_rates.vision):
            problems.append("data.keep_features: the tower's output changes with random_crop or a tower that trains")
        if self.data.random_crop and self.labels.crops:
            problems.append("data.random_crop: crops are random or the labelled ones, not both; set labels.crops: 0")
        if self.learning_rates.projector is None and terms:
            problems.append(
                f"learning_rates.projector: loss.{next(iter(terms))} trains the projector; give it a rate, or the term "
                "the weight 0"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems_of_bars(self) -> list[str]:
        found = []
        if self.data.random_crop:
            found.append(
                "data.random_crop: its crops are squares, which get no bars; set data.image_aspect_ratio: square, or "
                "random_crop: null"
            )
        if (self.loss.sea.weight or self.labels.path is not None) and not self.labels.transfer:
            found.append(
                "data.image_aspect_ratio: pad puts bars around the image, and labels must follow it; set "
                "labels.transfer: true"
            )
        return found


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "loss": {
            "sea": {"weight": 1.0, "logit_scale_init": 0.0, "window": 2, "word_prefix": "space", "match_norm": False}
        },
        "data": {"random_crop": None},
    }
}
