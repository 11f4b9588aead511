"""Define the keys of a recipe, which say all of a training run, and check them together.

`files.py` reads recipes. A recipe has a few groups of keys. Each field says what it means, and in which unit. If the
papers leave something open, a key is named after the question. `preset: paper` sets all of SEA's keys as we read the
paper; docs/readings.md lists them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from sea_pipeline.core.settings import Count, Filled, Positive, Seed, Strict
from trainer.recipes.attach_keys import problems_of_attach

SAMPLES = "samples"
"""The value of `data.train` for the sample photos that two packages ship, with captions of ours."""

Weight = Annotated[float, Field(ge=0)] | Literal["auto"]
AspectRatio = Literal["square", "pad"]
"""LLaVA's `image_aspect_ratio`. `square`: the tower's own image processor alone. `pad`: first bars that make a
square."""


def _step(value: object) -> object:
    if (type(value) is int and value >= 1) or (type(value) is float and 0 < value < 1):
        return value
    raise ValueError("expected a step, such as 500, or a share of the run below 1, such as 0.5")


Step = Annotated[int | float, BeforeValidator(_step)]
"""A point in a run: a number of optimizer steps, or, below 1, a share of all steps."""


class Parts(Filled):
    """The parts that a new model is made of, see `init_model`."""

    vision: str = "packaged"
    """The vision tower, given as for `init --vision`."""
    llm: str = "packaged"
    """The LLM, given as for `init --llm`."""
    projector: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"
    """LLaVA-1.5's MLP of two layers, or one linear layer."""


class ExistingModel(Filled):
    """A vision-language model of another family, which keeps its own form; docs/attach.md lists the families."""

    attach: Path
    """The model's folder. transformers must load it with AutoModelForImageTextToText and AutoProcessor."""


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


class Data(Filled):
    """The conversations and images to train on."""

    train: str = SAMPLES
    """A LLaVA `.json` or `.jsonl` file, or `samples` for the packaged sample photos."""
    image_root: Path | None = None
    """The folder that the image paths in the file are relative to. Default: the folder of the file."""
    template: Literal["plain", "vicuna_v1", "own"] = "own"
    """The prompt format. `plain`: image, caption, newline, as in LLaVA's stage 1. `vicuna_v1`: LLaVA-1.5's. `own`: the
    LLM's own chat template."""
    max_length: Annotated[Count, Field(ge=16)] = 2048
    """The largest number of tokens in a sample, image tokens included."""
    held_out: Annotated[float, Field(ge=0)] = 0
    """The samples that are kept from training, for the metrics. Below 1 it is a share, from 1 on a number. The split
    depends on the samples' ids alone, so an image of several samples may be on both sides, of which a run warns."""
    evaluate: str | None = None
    """Another file with held-out conversations, which is used instead of `held_out`. Its image paths are relative to
    `image_root`, too."""
    sampling: Literal["random", "modality_length"] = "random"
    """The order of samples in an epoch. `random`: a permutation. `modality_length`: as in LLaVA's stage 2. All samples
    of a step have images, or none has, and the samples of a micro-batch are about equally long."""
    image_aspect_ratio: AspectRatio | None = None
    """How images are made square. `square`: as the tower's own image processor does it; CLIP's crops the centre. `pad`:
    bars of the mean colour are added first, as in LLaVA-1.5's stage 2. Default: as in the model folder. The folder of
    the trained model does the same."""
    random_crop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Train on random square crops. The value is the smallest area of a crop, as a share of the area of the largest
    square. It needs `labels.transfer`."""
    bad_rows: Literal["stop", "leave_out"] = "stop"
    """What to do with rows that cannot be trained. Examples are rows without an answer within `max_length`, and rows
    whose image is missing, empty, cut off or no image. `stop`: name them all and stop before the first step.
    `leave_out`: go on without them, as LLaVA does, and count them in the summary. An image with damage in its middle is
    found when it is read, and stops the run."""
    keep_features: bool = False
    """Keep the frozen tower's output of every image in memory, see `tower_features`. It excludes `random_crop`."""


class LabelSource(Filled):
    """The labels: a finished folder of `sea-pipeline label`, or what to make."""

    path: str | Path | None = None
    """The folder of labels, or its URL. Default: the newest folder below runs/labels that fits the tower, holds the
    images, and has the word list, encoder and `top_n` named here. If there is none and L_a has a weight, it is made."""
    wordlist: str = "2of12"
    """The word list, given as for `label --wordlist`."""
    encoder: str = "packaged"
    """The encoder, given as for `label --encoder`."""
    top_n: Positive = 10
    """The largest number of labels per patch."""
    crops: Count = 0
    """The number of labelled crops of each image (`label --crops`). In each epoch one of them, or the image itself, is
    drawn."""
    transfer: bool = False
    """Carry labels to another grid or crop by their `crop_box`. Without it, a difference stops the run."""


class Sea(Strict):
    """SEA's L_a, Eq. 9, and how its pairs are drawn (section 4.2)."""

    weight: Weight = 0.0
    """lambda of SEA's Eq. 11, a number or `auto`. The paper gives none. 0 switches the term off, and its cost."""
    ratio: Annotated[float, Field(gt=0)] = 0.3
    """With `weight: auto`: the value at which |weight * grad L_a| / |grad L_lm| on the projector is held."""
    logit_scale_init: float = 0.0
    """log(1 / tau) at the start. We read the paper's "tau = 0" as 0 here, so that 1 / tau starts at 1. CLIP's value is
    2.659."""
    logit_scale_learnable: bool = True
    """Train the temperature."""
    window: Positive = 2
    """k of the k x k windows. Each window gives one patch."""
    ragged: Literal["keep", "drop"] = "keep"
    """What to do with the smaller windows at the edge, which exist if k does not divide the grid."""
    dedupe: Literal["word", "tokens"] = "word"
    """What no two patches of a batch may share. `word`: the word. `tokens`: the sequence of LLM tokens."""
    gather: bool = False
    """Take negatives from the batches of all processes."""
    match_norm: bool = True
    """At the end of a run, scale the projector so that visual tokens are as long as the LLM's embeddings. This is done
    only without L_lm and L_sds, because both depend on the length of a token."""
    word_prefix: Literal["space", "none", "both-mean"] = "space"
    """How a word is spelled for Eq. 8. `space`: after a space, as in running text. `none`: without it. `both-mean`: the
    mean of both."""


class Das(Strict):
    """BASIC's L_das, Eq. 6: the direction of visual tokens."""

    weight: Weight = 0.0
    """lambda_1 of BASIC's Eq. 8, a number or `auto`. The paper has 1. 0 switches the term off, and its cost."""
    ratio: Annotated[float, Field(gt=0)] = 0.3
    """With `weight: auto`: the value at which |weight * grad L_das| / |grad L_lm| on the projector is held."""


class Sds(Strict):
    """BASIC's L_sds, Eq. 7: the distribution of visual tokens over the vocabulary."""

    weight: Weight = 0.0
    """lambda_2 of BASIC's Eq. 8, a number or `auto`. The paper has 0.01. 0 switches the term off, and its cost."""
    ratio: Annotated[float, Field(gt=0)] = 0.3
    """With `weight: auto`: the value at which |weight * grad L_sds| / |grad L_lm| on the projector is held."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The number that divides the logits of both distributions. The paper has none. V^ is often so long that P is
    nearly one-hot."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The precision of the products with the vocabulary. `auto`: bfloat16 with `bf16`, else float32."""


class Basic(Strict):
    """How BASIC's supervision is made of the LLM's own layers (section 4.1).

    `teacher` has all of these but the last two as options.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    layers: Positive | None = None
    """The number of layers that are summed, k of BASIC's Eq. 4 and 5. Default: half of the LLM's layers."""
    layer_weights: Literal["inc", "const", "dec"] = "inc"
    """How the layers are weighted, w_i of BASIC's Eq. 4. inc: later layers count more. const: all count the same. dec:
    later layers count less."""
    # inc grows as i^2, and dec falls as (k + 1 - i)^2.
    degree: Literal["auto", "equal"] = "auto"
    """How the patches are weighted, a_i of BASIC's Eq. 5. auto: by the text's attention. equal: all count the same."""
    # All the same: 1 / m.
    text: Literal["all", "prompt"] = "all"
    """The text after the image whose attention counts. all: all of it. prompt: only what is not trained."""
    normalise: Literal["none", "unit"] = "none"
    """How each layer's tokens are scaled before the sum. none: not at all. unit: to the same length."""
    # The mean length of the LLM's embeddings. Later layers' tokens are longer, and mostly so in one or two dimensions.
    outliers: Count = 0
    """The number of dimensions of the supervision that are set to 0. They are those with the largest mean square in a
    batch."""
    lens: Literal["none", "ridge", "centred", "shuffled"] = "none"
    """Map each layer's visual tokens to the LLM's embeddings before the sum. This is ours, not the paper's. `ridge`: a
    linear map by ridge regression, from the states of plain text to its tokens' own embeddings. It is fitted once, on
    the LLM as it is before the run. `centred` and `shuffled` are controls. `centred` moves only the mean. `shuffled` is
    fitted with the tokens shuffled."""


class Loss(Strict):
    """loss = lm * L_lm + sea * L_a (SEA's Eq. 11) + das * L_das + sds * L_sds (BASIC's Eq. 8).

    L_a is a mean over a step's micro-batches. L_das and L_sds are means over a step's samples that have images.
    """

    lm: Annotated[float, Field(ge=0)] = 1.0
    """The weight of L_lm. With 0 the LLM's layers are not even loaded, and the projector trains against the embedding
    matrix alone."""
    norm: Literal["batch", "token"] = "batch"
    """How L_lm is averaged. `batch`: over the tokens of a micro-batch, then over micro-batches, as in LLaVA. `token`:
    over all tokens of a step."""
    sea: Sea = Sea()
    """SEA's L_a."""
    das: Das = Das()
    """BASIC's L_das."""
    sds: Sds = Sds()
    """BASIC's L_sds."""
    basic: Basic = Basic()
    """The supervision of L_das and L_sds."""
    measure_every: Positive = 10
    """The number of steps between two measurements of the gradient norms on the projector. With `weight: auto` the
    weight follows them."""

    def terms(self) -> dict[str, Sea | Das | Sds]:
        """Return the terms besides L_lm that are switched on, by name."""
        every: dict[str, Sea | Das | Sds] = {"sea": self.sea, "das": self.das, "sds": self.sds}
        return {name: term for name, term in every.items() if term.weight}

    def basic_terms(self) -> list[str]:
        """List BASIC's terms that are switched on, which are made from the LLM's layers."""
        return [name for name in ("das", "sds") if name in self.terms()]


class LearningRates(Strict):
    """The peak learning rate of each part. null leaves the part frozen."""

    projector: Annotated[float, Field(gt=0)] | None = 1e-3
    """The projector's rate."""
    llm: Annotated[float, Field(gt=0)] | None = None
    """The rate of the LLM, or of its adapters with `lora`."""
    vision: Annotated[float, Field(gt=0)] | None = None
    """The vision tower's rate."""
    logit_scale: Annotated[float, Field(gt=0)] | None = None
    """The rate of the temperature. Default: the projector's."""

    def by_part(self, *, adapted: bool = False) -> dict[str, float | None]:
        """Return the rate of each part of a model; in an adapted LLM only the adapters train."""
        rates = {"projector": self.projector, "alignment": self.projector, "vision": self.vision}
        return rates | {"llm": None if adapted else self.llm, "lora": self.llm}


class Lora(Strict):
    """Adapters on the LLM, with LLaVA-1.5's values.

    They train at `learning_rates.llm`, and the LLM's own weights are frozen. In the end they are merged into the
    weights of the model folder. BASIC's targets are those of the adapted LLM.
    """

    rank: Positive = 128
    """The number of dimensions between the two matrices of an adapter."""
    alpha: Annotated[float, Field(gt=0)] = 256
    """The output of an adapter is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """The dropout of an adapter's input."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """The layers with adapters. `all-linear`: every linear layer but the head. Or names, such as q_proj."""


class Recipe(Filled):
    """One run of `sea-pipeline train`."""

    name: str = "run"
    """The beginning of the run folder's name if --out is not given."""
    preset: Literal["paper"] | None = None
    """`paper` is our reading of SEA's paper. It switches L_a on, and sets those of SEA's open keys that the recipe
    leaves out."""
    model: Model = Parts()
    """A LLaVA folder, parts that become one, or `attach: FOLDER` for a model of another family."""
    data: Data = Data()
    """The conversations and images to train on."""
    labels: LabelSource = LabelSource()
    """The labels of the images, for L_a and for metrics."""
    teacher: str | Path | None = None
    """A finished folder of `sea-pipeline teacher`, or its URL. BASIC's supervision is read from it, and not
    computed."""
    loss: Loss = Loss()
    """The terms of the loss, and their weights."""
    learning_rates: LearningRates = LearningRates()
    """The parts that train, and how fast."""
    lora: Lora | None = None
    """Train adapters instead of the LLM's own weights. `lora: {}` has LLaVA's values."""
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The number format of the parts that do not train. `auto`: bfloat16 with `bf16` on CUDA, else float32. Parts that
    train are float32."""
    evaluate_every: Positive | None = None
    """The number of steps between two evaluations on held-out samples. The start and the end are always evaluated."""
    keep_checkpoints: tuple[Step, ...] = ()
    """The steps whose weights are kept for good in `kept/`, for `export --checkpoint`. They hold what the model folder
    would hold (with LoRA in float32, before adapters are merged), without the optimizer, so no run goes on from them.
    The model folder has those of the last step."""
    seed: Seed = 0
    """The random seed of all that a run draws."""
    training_arguments: dict[str, Any] = Field(default_factory=dict)
    """Anything that `transformers.TrainingArguments` takes. It overrides the defaults in
    `trainer/training/arguments.py`. What does nothing here is refused, see `trainer/training/argument_table.py`."""

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        problems = []
        terms = self.loss.terms()
        basic = self.loss.basic_terms()
        if not (self.loss.lm or terms):
            problems.append("loss: every weight is 0; give one of the terms a weight")
        problems += [
            f"loss.{name}.weight: auto holds a ratio to L_lm, whose weight is 0; give a number"
            for name, term in terms.items()
            if term.weight == "auto" and not self.loss.lm
        ]
        if basic and not self.loss.lm and self.teacher is None:
            problems.append(f"loss.{basic[0]}: without L_lm the LLM's layers do not run; set teacher to cached targets")
        if basic and self.teacher is not None and (self.labels.crops or self.data.random_crop):
            problems.append("teacher: its targets are of whole images; set labels.crops: 0 and data.random_crop: null")
        if basic and self.teacher is not None and self.loss.basic.lens != "none":
            problems.append(
                "loss.basic.lens: is for supervision that the run computes, and a teacher's targets have none; set it "
                "to none, or teacher to null"
            )
        if not self.loss.lm and (self.learning_rates.llm or self.learning_rates.vision):
            problems.append("learning_rates: with loss.lm = 0 only the projector trains; set llm and vision to null")
        if self.lora is not None and not (self.learning_rates.llm and self.loss.lm):
            problems.append(
                "lora: its adapters train with the LLM; set learning_rates.llm (LLaVA: 2e-4) and loss.lm, or lora to "
                "null, as in a stage without the LLM"
            )
        problems += self._problems_of_data()
        if isinstance(self.model, ExistingModel):
            of_attach = problems_of_attach(self)
            keys = {problem.partition(":")[0] for problem in of_attach}
            problems = of_attach + [problem for problem in problems if problem.partition(":")[0] not in keys]
        if self.learning_rates.projector is None and terms:
            problems.append(
                f"learning_rates.projector: loss.{next(iter(terms))} trains the projector; give it a rate, or the term "
                "the weight 0"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems_of_data(self) -> list[str]:
        found = []
        if self.data.random_crop and self.loss.sea.weight and not self.labels.transfer:
            found.append("data.random_crop: labels must follow the crop; set labels.transfer: true")
        if self.data.image_aspect_ratio == "pad":
            found += self._problems_of_bars()
        if self.data.keep_features and (self.data.random_crop or self.learning_rates.vision):
            found.append(
                "data.keep_features: the tower's output changes with random_crop or a tower that trains; set it to "
                "false"
            )
        if self.data.random_crop and self.labels.crops:
            found.append("data.random_crop: crops are random or the labelled ones, not both; set labels.crops: 0")
        return found

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
