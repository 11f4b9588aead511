"""Find an open_clip model, with its config at once and its weights when they are needed."""

import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import require
from sea_pipeline.core.progress import is_heard
from sea_pipeline.encoders.base import Preprocess
from sea_pipeline.encoders.weight_forms import other_form_of_file, other_form_of_folder
from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from sea_pipeline.storage.paths import expanded

_LOG = logging.getLogger(__name__)
_HUB, _LOCAL = "hf-hub:", "local-dir:"
_CONFIG = "open_clip_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSource:
    """One open_clip model and where its files come from."""

    option: str
    """The option that asks for it, for messages."""
    model: str
    """Its name in a spec, with files and folders absolute."""
    name: str
    """Its name for `open_clip.create_model`."""
    config: Mapping[str, Any]
    """open_clip's `model_cfg`: embed_dim, vision_cfg, text_cfg, …"""
    pixels: Mapping[str, Any]
    """open_clip's `preprocess_cfg`, complete except for the size."""
    find_weights: Callable[[], Path]
    folder: Path | None = None

    @cached_property
    def preprocess(self) -> Preprocess:
        """Return how images become the model's input."""
        size = self.config["vision_cfg"].get("image_size", 224)
        if not isinstance(size, int):
            if len(set(size)) > 1:
                raise UserError(f"{self.option}: expected a model for square images; found image_size {list(size)}")
            size = size[0]
        bilinear = self.pixels["interpolation"] == "bilinear"  # "random" is for training, and means bicubic here
        return Preprocess(
            size, self.pixels["resize_mode"], "bilinear" if bilinear else "bicubic", int(self.pixels["fill_color"])
        )

    @cached_property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of pixels in 0..1, three numbers each."""
        return _three(self.pixels["mean"]), _three(self.pixels["std"])

    @cached_property
    def weights(self) -> Path:
        """Return the file of weights, downloaded if open_clip lists it.

        Raises:
            UserError: they cannot be downloaded.
        """
        with _fetching(self.option, self.model, "its weights"):
            return self.find_weights()

    @cached_property
    def weights_sha256(self) -> str:
        """Return the sha256 of the file of weights."""
        return file_sha256(self.weights)

    def load(self) -> Any:  # noqa: ANN401 - an untyped package's model
        """Load the model with its weights, in float32, on the CPU, for evaluation.

        Raises:
            UserError: the weights are damaged, hold more than weights, or are of another model.
        """
        listed = self.folder is None and not self.name.startswith(_HUB)
        weights = self.weights
        with self._telling(f"{weights} cannot be loaded"):
            model = require("open_clip", "clip").create_model(
                self.name,
                str(weights) if listed else None,
                force_quick_gelu=bool(self.config.get("quick_gelu")),
                require_pretrained=True,
                weights_only=True,
            )
        return model.eval().requires_grad_(False)

    def tokenizer(self) -> Callable[..., Any]:
        """Load the model's tokenizer, which turns a list of texts into int64 (texts, context length)."""
        with self._telling("its tokenizer cannot be loaded"):
            found: Callable[..., Any] = require("open_clip", "clip").get_tokenizer(self.name)

        def tokenized(texts: list[str]) -> Any:  # noqa: ANN401 - a tensor
            with self._telling("its tokenizer cannot be used"):  # some need more, such as nltk and its data
                return found(texts)

        return tokenized

    def word_fields(self) -> dict[str, Any]:
        """Return what of the model decides the embeddings of words."""
        text = {name: self.config.get(name) for name in ("embed_dim", "text_cfg", "quick_gelu")}
        return {
            "text_config": fingerprint_of(text),
            "weights_sha256": self.weights_sha256,
            "tokenizer": self._tokenizer_fields(),
        }

    def fields(self) -> dict[str, Any]:
        """Return what of the model decides any embedding."""
        mean, std = self.mean_and_std
        return {
            "config": fingerprint_of(dict(self.config)),
            "quick_gelu": bool(self.config.get("quick_gelu")),
            "weights_sha256": self.weights_sha256,
            "tokenizer": self._tokenizer_fields(),
            "preprocess": self.preprocess.fields() | {"mean": list(mean), "std": list(std)},
        }

    def _tokenizer_fields(self) -> Any:  # noqa: ANN401 - JSON
        named = self.config["text_cfg"].get("hf_tokenizer_name")
        if named and self.folder:
            files = (self.folder / name for name in _TOKENIZER_FILES)
            return {file.name: file_sha256(file) for file in files if file.is_file()}
        return named or ("siglip" if "siglip" in self.name.lower() and not self.folder else "simple")

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # from open_clip, torch, safetensors or huggingface_hub
            raise UserError(f"{self.option}: {what}: {one_line(error)}") from error


def find_model(model: str, option: str) -> ModelSource:
    """Find the model that a spec names after `open_clip:`.

    The config of a `hf-hub:` model is downloaded.

    Raises:
        UserError: there is no such model, its config is not open_clip's, or its tokenizer lacks a package.
    """
    folder = expanded(model.removeprefix(_LOCAL))
    if model.startswith(_HUB):
        found = _hub_model(model, option)
    else:
        found = _folder_model(folder.absolute(), option) if folder.is_dir() else _listed_model(model, option)
    if any(found.config["text_cfg"].get(name) for name in ("hf_tokenizer_name", "hf_model_name")):  # as SigLIP's has
        require("transformers", "clip")
    return found


def _listed_model(model: str, option: str) -> ModelSource:
    open_clip = require("open_clip", "clip")
    arch, _, pretrained = model.partition("/")
    if arch not in (listed := open_clip.list_models()):  # get_model_config would open a schema, such as local-dir:
        found, near = (model, "") if model.startswith(_LOCAL) else (arch or model, _suggestions(arch, listed))
        raise UserError(
            f"{option}: expected an architecture of open_clip, a folder or hf-hub:ORG/NAME; found {found!r}{near}"
        )
    if chosen := open_clip.get_pretrained_cfg(arch, pretrained):

        def download() -> Path:
            _LOG.info("finding the weights of %s, which are downloaded once", model)
            return Path(open_clip.download_pretrained(chosen))

        return ModelSource(option, model, arch, *_of_tag(arch, pretrained), download)
    file = expanded(pretrained).absolute()
    if not pretrained or not file.is_file():
        raise UserError(
            f"{option}: expected {arch}/ and then a tag of open_clip or a file of weights; found "
            f"{pretrained or 'nothing'}{_suggestions(pretrained, open_clip.list_pretrained_tags_by_model(arch))}"
        )
    if problem := other_form_of_file(file):
        raise UserError(f"{option}: {problem}")
    if doubt := _doubt(arch):
        _warn_once(f"{option}: {doubt}")
    return ModelSource(option, f"{arch}/{file}", arch, *_of_file(arch), lambda: file)


@cache
def _warn_once(line: str) -> None:
    """Log a warning, but not again for each path of a model that is probed."""
    _LOG.warning("%s", line)


class _Reading(NamedTuple):
    """How weights of a listed architecture are read: open_clip's `model_cfg` and `preprocess_cfg`."""

    config: dict[str, Any]
    pixels: dict[str, Any]

    def decisive(self) -> tuple[Any, ...]:
        """Return what decides vectors. The size of the pixels is the architecture's, and "random" means bicubic."""
        pixels = [self.pixels[name] for name in ("mean", "std", "resize_mode", "fill_color")]
        return self.config | {"quick_gelu": self.activation()}, self.pixels["interpolation"] == "bilinear", pixels

    def activation(self) -> str:
        """Name the activation."""
        return "QuickGELU" if self.config.get("quick_gelu") else "GELU"


def _of_tag(arch: str, tag: str) -> _Reading:
    open_clip = require("open_clip", "clip")
    config, chosen = open_clip.get_model_config(arch), open_clip.get_pretrained_cfg(arch, tag)
    config["quick_gelu"] = bool(chosen.get("quick_gelu") or config.get("quick_gelu"))
    return _Reading(config, _pixels(chosen))


def _of_file(arch: str) -> _Reading:
    """Return how a file of weights is read, which says neither its activation nor how its pixels were made.

    If all listed tags of the architecture agree in their pixels, theirs are taken.
    """
    open_clip = require("open_clip", "clip")
    listed = [open_clip.get_pretrained_cfg(arch, tag) for tag in open_clip.list_pretrained_tags_by_model(arch)]
    shared = listed[0] if listed and all(_pixels(tag) == _pixels(listed[0]) for tag in listed) else {}
    return _Reading(open_clip.get_model_config(arch), _pixels(shared))


def _file_of(arch: str, tag: str) -> str:
    """Return what to give in place of a tag so that weights that lie here are read as the tag's are."""
    open_clip = require("open_clip", "clip")
    for name in (arch, f"{arch}-quickgelu"):
        config = open_clip.get_model_config(name)
        if config is not None and _of_file(name).decisive() == _of_tag(arch, tag).decisive():
            return f"open_clip:{name}/FILE.pt"
    return f"open_clip:FOLDER with its {_CONFIG}"


def _doubt(arch: str) -> str | None:
    """Say what is assumed of a file of weights if some listed weights of its architecture are read otherwise."""
    assumed, others = _of_file(arch), defaultdict[str, list[str]](list)
    for tag in require("open_clip", "clip").list_pretrained_tags_by_model(arch):
        if _of_tag(arch, tag).decisive() != assumed.decisive():
            others[_file_of(arch, tag)].append(tag)
    if not others:
        return None
    mean = " ".join(f"{value:.3g}" for value in assumed.pixels["mean"])
    return (
        f"a file of weights does not say how it is read; {assumed.activation()}, pixels of mean {mean} and resize mode "
        f"{assumed.pixels['resize_mode']} are assumed, which is wrong for some weights of {arch}: "
        + "; ".join(f"for {', '.join(tags)} give {place}" for place, tags in others.items())
    )


def _folder_model(folder: Path, option: str) -> ModelSource:
    find = require("open_clip.factory", "clip")._find_checkpoint_in_dir
    if not (folder / _CONFIG).exists() and (problem := other_form_of_folder(folder)):
        raise UserError(f"{option}: {problem}")
    config, pixels = _read_config(folder / _CONFIG, option)
    weights = find(folder)
    if weights is None:
        raise UserError(f"{option}: expected a .safetensors, .bin or .pth file in {folder}; found none")
    if problem := other_form_of_file(Path(weights)):
        raise UserError(f"{option}: {problem}")
    return ModelSource(option, str(folder), f"{_LOCAL}{folder}", config, pixels, lambda: Path(weights), folder)


def _hub_model(model: str, option: str) -> ModelSource:
    fetch = require("open_clip.pretrained", "clip").download_pretrained_from_hf
    name = model.removeprefix(_HUB)
    _LOG.info("finding %s, which is downloaded once", name)
    with _fetching(option, model, f"{_CONFIG} of {name}"):
        file = fetch(name, filename=_CONFIG)
    config, pixels = _read_config(Path(file), option)
    return ModelSource(option, model, model, config, pixels, lambda: Path(fetch(name)))


@contextmanager
def _fetching(option: str, model: str, what: str) -> Iterator[None]:
    """Keep the hub's client from reporting each try, and tell what ended the last one, within this block."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with nullcontext() if is_heard() else redirect_stderr(io.StringIO()):  # open_clip's own bar has no setting
            yield
    except UserError:
        raise
    except Exception as error:  # from open_clip, huggingface_hub or the connection
        if model.startswith(_HUB) and (problem := _not_of_open_clip(model.removeprefix(_HUB), error)):
            raise UserError(f"{option}: {problem}") from error
        of_file = "open_clip:FOLDER" if model.startswith(_HUB) else _file_of(*model.split("/", 1))
        raise UserError(
            f"{option}: {what} cannot be fetched: {_tried(error)}; with a network try again, or give what you have "
            f"already, {of_file}, or leave out --encoder for the packaged one"
        ) from error
    finally:
        log.setLevel(level)


def _not_of_open_clip(name: str, error: BaseException) -> str | None:
    """Say that a repository of the hub has no model in open_clip's form, or return None if that is not known."""
    twin = _listed_twin(name)
    kinds = {kind.__name__ for each in _causes(error) for kind in type(each).__mro__}
    if twin is None and ("EntryNotFoundError" not in kinds or "LocalEntryNotFoundError" in kinds):
        return None
    way = f"give open_clip:{twin} for the same weights" if twin else "give a repository of open_clip's form"
    return f"expected a repository with {_CONFIG}; {name} has none, so it may be of transformers' form; {way}"


def _listed_twin(name: str) -> str | None:
    """Return open_clip's name of the weights that a well-known repository has in transformers' form, or None."""
    arch = tag = ""
    if found := re.fullmatch(r"openai/clip-vit-(base|large)-patch(\d+)(-336)?", name):
        arch, tag = f"ViT-{found[1][0].upper()}-{found[2]}{found[3] or ''}-quickgelu", "openai"
    elif found := re.fullmatch(r"facebook/metaclip-([blh])(\d+)-(400m|fullcc)(2\.5b)?", name):
        arch, tag = f"ViT-{found[1].upper()}-{found[2]}-quickgelu", f"metaclip_{found[3]}"
    elif found := re.fullmatch(r"google/siglip(2?)-(base|large|so400m|giant-opt)-patch(\d+)-(\d+)(-\w+)?", name):
        size = {"base": "B", "large": "L", "so400m": "SO400M", "giant-opt": "gopt"}[found[2]]
        many = {"-multilingual": "-i18n", "-i18n": "-i18n", None: ""}.get(found[5], "-unknown")
        side = "" if found[4] == "224" else f"-{found[4]}"
        arch, tag = f"ViT-{size}-{found[3]}-SigLIP{found[1]}{many}{side}", "webli"
    return f"{arch}/{tag}" if tag and require("open_clip", "clip").get_pretrained_cfg(arch, tag) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and what each began with."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def _tried(error: BaseException) -> str:
    """Return what failed, and what it began with, because open_clip's message is cut off before that."""
    *_, first = _causes(error)
    what = one_line(error).partition(" Last error:")[0].rstrip(".")
    return what if first is error else f"{what} ({one_line(first).rstrip('.')})"


def _read_config(file: Path, option: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a model's config and preprocessing from `open_clip_config.json`."""
    try:
        values = json.loads(file.read_bytes())
        config = values["model_cfg"]
        assert {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise UserError(
            f"{option}: expected {file} with model_cfg: embed_dim, vision_cfg and text_cfg; found none of open_clip's"
        ) from error
    said = values.get("preprocess_cfg") or {}
    if not isinstance(said, dict):
        raise UserError(f"{option}: {file}: expected settings in preprocess_cfg; found {said!r}; correct it")
    pixels = _pixels(said)
    for name, (wanted, fits) in _PIXELS.items():
        if not fits(pixels[name]):
            raise UserError(
                f"{option}: {file}: expected preprocess_cfg.{name} to be {wanted}; found {said[name]!r}; correct it"
            )
    return config, pixels


def _pixels(overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in open_clip's defaults, which stand for 0 and empty values, too."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    given = {name: value for name, value in overlay.items() if value}
    merged: dict[str, Any] = merge_preprocess_dict(asdict(PreprocessCfg()), given)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in merged.items()}


def _three(value: Any) -> tuple[float, ...]:  # noqa: ANN401 - JSON
    """Return one number or three as three, and anything else as none."""
    numbers = value if isinstance(value, tuple) else (value,) * 3
    return numbers if len(numbers) == 3 and all(isinstance(number, int | float) for number in numbers) else ()


def _is_one_of(*allowed: str) -> Callable[[Any], bool]:
    return lambda value: value in allowed


_PIXELS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mode": ("RGB", _is_one_of("RGB")),
    "resize_mode": ("shortest, longest or squash", _is_one_of("shortest", "longest", "squash")),
    "interpolation": ("bicubic, bilinear or random", _is_one_of("bicubic", "bilinear", "random")),
    "mean": ("one number or three", lambda value: bool(_three(value))),
    "std": ("one number or three, none of them 0", lambda value: bool(_three(value)) and all(_three(value))),
    "fill_color": ("a grey level from 0 to 255", lambda value: isinstance(value, int | float) and 0 <= value <= 255),
}
"""What each setting of pixels must be; open_clip itself fails on others, but for a colour to fill with."""


def _suggestions(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, 4, 0.4) or (names if len(names) < 8 else [])
    return f"; near it: {', '.join(near)}" if near else ""
