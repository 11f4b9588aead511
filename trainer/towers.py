"""Registers vision towers that transformers lacks with its Auto classes when this module is imported.

After that a folder whose vision part is one of these loads in stock transformers classes.

Shapes: B images, m = g * g visual tokens in row-major order, d the tower's width.
"""

from math import isqrt
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, LlavaConfig, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sea_pipeline.core.devices import has_onednn
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from sea_pipeline.encoders.packaged import frozen_features
from sea_pipeline.encoders.spec import S2_SCALES
from sea_pipeline.inputs.crops import Reach, patch_reach, scales_reach


class _Tower(PreTrainedModel):
    main_input_name = "pixel_values"
    input_modalities = "image"
    # One attention implementation is set for a whole model, and a tower without attention must not refuse it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that sees the pixels.

        transformers hooks it if inputs must require gradients.
        """
        raise NotImplementedError

    def _output(
        self,
        features: torch.Tensor,
        hidden_states: bool | int | list[int] | None,
    ) -> BaseModelOutputWithPooling:
        """Wrap (B, m, d) features in transformers' output class.

        `hidden_states` may not be tested for truth, because 0 is a layer.
        """
        wanted = self.config.output_hidden_states if hidden_states is None else hidden_states is not False
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=features.mean(1),
            hidden_states=(features,) if wanted else None,
        )


class PackagedTowerConfig(PreTrainedConfig):
    """The configuration of EfficientNet-Lite0 before its classifier, with sizes in pixels."""

    model_type = "sea_packaged"
    base_config_key = "vision_config"

    hidden_size: int = 1280
    image_size: int = 448
    patch_size: int = 32
    num_channels: int = 3
    num_hidden_layers: int = 0
    """0, because only the last layer is given out."""


class PackagedTower(_Tower):
    """EfficientNet-Lite0's features before the classifier, stride 32: the tower of the packaged demo.

    The tower is a feature extractor, so batch norms use their running statistics in training, too. Gradients flow to
    its parameters that require one.

    Raises:
        UserError: the package with the network's code is not installed. The package with its weights is not needed.
    """

    config_class = PackagedTowerConfig

    def __init__(self, config: PackagedTowerConfig) -> None:
        super().__init__(config)
        self.network = require("efficientnet_lite_pytorch", "demo").EfficientNet.from_name("efficientnet-lite0")
        del self.network._fc
        self.post_init()
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the tower's training flag, but keep the network in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the first convolution."""
        stem: nn.Module = self.network._conv_stem
        return stem

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        **_: Any,  # noqa: ANN401 - what transformers hands to every tower
    ) -> BaseModelOutputWithPooling:
        """Run the network.

        Args:
            pixel_values: (B, 3, height, width), (x - 127) / 128 of 8-bit RGB; 448 x 448 gives m = 196.
            output_hidden_states: True, or the layers wanted, asks for `hidden_states`.

        Returns:
            `last_hidden_state` (B, m, 1280). `hidden_states` holds the same tensor alone, so that it is layer -1.
        """
        images = pixel_values.to(self.dtype)
        if self._is_frozen_here(images):
            features = _tokens(frozen_features(self.network, images))
        elif images.device.type == "cpu":  # one image's activations fit the cache: half the time of a batch
            features = torch.cat([self._features(image) for image in torch.split(images, 1)])
        else:
            features = self._features(images)
        return self._output(features, output_hidden_states)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return _tokens(self.network.extract_features(images.contiguous(memory_format=torch.channels_last)))

    def _is_frozen_here(self, images: torch.Tensor) -> bool:
        """Tell whether the fast path for a frozen network on a CPU applies.

        It does if no gradient is asked for, and all weights are whole float32 parameters. FSDP's may be cut.
        """
        if images.device.type != "cpu" or images.dtype != torch.float32 or not has_onednn():
            return False
        if torch.is_autocast_enabled("cpu") or not all(type(one) is nn.Parameter for one in self.parameters()):
            return False
        return not torch.is_grad_enabled() or not any(one.requires_grad for one in (images, *self.parameters()))


def _tokens(maps: torch.Tensor) -> torch.Tensor:
    """Flatten feature maps, (B, d, g, g), to tokens, (B, m, d)."""
    return maps.flatten(2).transpose(1, 2).contiguous()


class S2TowerConfig(PreTrainedConfig):
    """The configuration of a base tower run at several scales.

    `hidden_size`, `image_size` and `patch_size` are derived from the other fields.
    """

    model_type = "sea_s2"
    base_config_key = "vision_config"
    sub_configs_defaults = {"base": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model")}  # noqa: RUF012

    base: dict[str, Any] | PreTrainedConfig | None = None
    """The base tower's config."""
    scales: list[int] | tuple[int, ...] = S2_SCALES
    """Multiples of the base resolution, ascending; their features are joined in this order."""
    feature_layer: int = -2
    """The index into the base tower's hidden states."""
    feature_select_strategy: str = "default"
    """"default" drops the base's first token (CLS), "full" keeps all."""
    tile_size: int | None = None
    """The side in pixels of the image that the base tower sees at once; None: its `image_size`."""

    hidden_size: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    num_channels: int = 3
    num_hidden_layers: int = 0

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - transformers' own signature
        """Derive the sizes."""
        super().__post_init__(**kwargs)
        base: Any = self.base
        self.scales = list(self.scales)
        self.tile_size = self.tile_size or int(base.image_size)
        self.hidden_size = base.hidden_size * len(self.scales)
        self.image_size = self.tile_size * max(self.scales)
        self.patch_size = base.patch_size * max(self.scales)


class S2Tower(_Tower):
    """Scaling on Scales (Shi et al. 2024, arXiv 2403.13043) around any vision tower.

    At scale s the image is resized to s times the base resolution and cut into s * s tiles. The base tower sees each
    tile alone. The tiles' features, put together again, form an (s g) x (s g) map, which area averaging brings to
    g x g. The scales' maps are joined along the channels, so m = g * g and d = (number of scales) * (base width).
    """

    config_class = S2TowerConfig

    def __init__(self, config: S2TowerConfig) -> None:
        super().__init__(config)
        self.base = AutoModel.from_config(config.base)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the base tower's input module."""
        embeddings: nn.Module = self.base.get_input_embeddings()
        return embeddings

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        **_: Any,  # noqa: ANN401 - what transformers hands to every tower
    ) -> BaseModelOutputWithPooling:
        """Run the base tower at each scale.

        Args:
            pixel_values: (B, 3, s t, s t), t the tile's side and s the largest scale, preprocessed as for the base.
            output_hidden_states: True, or the layers wanted, asks for `hidden_states`.

        Returns:
            `last_hidden_state` (B, m, d) without CLS. `hidden_states` holds the same tensor alone, as layer -1.
        """
        features = torch.cat([self._at_scale(pixel_values, scale) for scale in self.config.scales], dim=1)
        return self._output(features.flatten(2).transpose(1, 2), output_hidden_states)

    def _at_scale(self, pixels: torch.Tensor, scale: int) -> torch.Tensor:
        """Compute the base tower's features at one scale, (B, base width, g, g)."""
        tile = self.config.tile_size
        side = scale * tile
        if pixels.shape[-2:] != (side, side):  # bicubic without antialiasing, as in the authors' code
            exact = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
            pixels = F.interpolate(exact, size=(side, side), mode="bicubic").to(pixels.dtype)
        count, channels = pixels.shape[:2]
        # (B, 3, s t, s t) to (B s s, 3, t, t), tiles of an image row by row
        tiles = pixels.reshape(count, channels, scale, tile, scale, tile).permute(0, 2, 4, 1, 3, 5)
        tokens = self._base_tokens(tiles.reshape(-1, channels, tile, tile))
        grid = isqrt(tokens.shape[1])
        # (B s s, g g, width) to (B, width, s g, s g): the tiles put together again
        maps = tokens.reshape(count, scale, scale, grid, grid, -1).permute(0, 5, 1, 3, 2, 4)
        return F.avg_pool2d(maps.reshape(count, -1, scale * grid, scale * grid), scale)

    def _base_tokens(self, tiles: torch.Tensor) -> torch.Tensor:
        layer = self.config.feature_layer
        tokens: torch.Tensor = self.base(tiles, output_hidden_states=[layer]).hidden_states[layer]
        return tokens[:, 1:] if self.config.feature_select_strategy == "default" else tokens


class PatchTowerConfig(PreTrainedConfig):
    """The configuration of a tower of which only the patch tokens of one layer are given out.

    `hidden_size`, `image_size` and `patch_size` are the base's, unless its configuration does not have them.
    """

    model_type = "sea_patches"
    base_config_key = "vision_config"
    sub_configs_defaults = {"base": SubConfigSpec(config_class=AutoConfig, model_type="dinov3_vit")}  # noqa: RUF012

    base: dict[str, Any] | PreTrainedConfig | None = None
    """The base tower's config."""
    feature_layer: int = -2
    """The index into the base tower's hidden states; of a timm model, into its blocks."""
    leading_tokens: int = 1
    """The number of tokens before the patches: CLS and registers. timm gives out none of them."""

    hidden_size: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    num_channels: int = 3
    num_hidden_layers: int = 0

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - transformers' own signature
        """Take the sizes from the base."""
        super().__post_init__(**kwargs)
        base: Any = self.base
        self.hidden_size = self.hidden_size or base.hidden_size
        self.image_size = self.image_size or base.image_size
        self.patch_size = self.patch_size or base.patch_size


class PatchTower(_Tower):
    """The patch tokens of a tower that has several tokens before them, such as CLS and four registers of DINOv3.

    LLaVA's own classes drop one token or none. This tower drops all that belong to no place in the image.
    """

    config_class = PatchTowerConfig

    def __init__(self, config: PatchTowerConfig) -> None:
        super().__init__(config)
        self.base = AutoModel.from_config(config.base)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the base tower's input module."""
        by_timm = getattr(self.base, "timm_model", None)  # whose class in transformers has no such method
        embeddings: nn.Module = self.base.get_input_embeddings() if by_timm is None else by_timm.patch_embed
        return embeddings

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        **_: Any,  # noqa: ANN401 - what transformers hands to every tower
    ) -> BaseModelOutputWithPooling:
        """Run the base tower.

        Args:
            pixel_values: (B, 3, height, width), preprocessed as for the base.
            output_hidden_states: True, or the layers wanted, asks for `hidden_states`.

        Returns:
            `last_hidden_state` (B, m, d), the patches of the base's `feature_layer`, row by row. `hidden_states` holds
            the same tensor alone, as layer -1.
        """
        layer, config = self.config.feature_layer, self.config
        hidden = self.base(pixel_values, output_hidden_states=[layer]).hidden_states
        if config.base.model_type == "timm_wrapper":  # it gives maps of the asked blocks alone
            return self._output(_tokens(hidden[0]), output_hidden_states)
        return self._output(hidden[layer][:, config.leading_tokens :], output_hidden_states)


def tower_grid(config: LlavaConfig, source: str = "config.json") -> tuple[int, int]:
    """Return rows and columns of the visual tokens of one image.

    Args:
        config: its `image_seq_length` is the number of them.
        source: the folder's name in an error.

    Raises:
        UserError: `image_seq_length` is not a square number.
    """
    side = isqrt(config.image_seq_length)
    if side * side != config.image_seq_length:
        raise UserError(
            f"{source}: an image has {config.image_seq_length} visual tokens; expected the square of the grid's side; "
            "make the folder with sea-pipeline init, which leaves out a tower's class token"
        )
    return side, side


def tower_reach(vision: Any, size: tuple[int, int]) -> Reach:  # noqa: ANN401 - a tower's configuration
    """Compute how far a tower's patches reach in its input of `size`, (height, width) in pixels."""
    if isinstance(vision, S2TowerConfig):
        return scales_reach(tower_reach(vision.base, (vision.tile_size,) * 2), vision.scales)  # type: ignore[arg-type]
    patch = sides(vision.patch_size)
    return patch_reach((size[0] // patch[0], size[1] // patch[1]), patch, size)


def sides(given: Any) -> tuple[int, int]:  # noqa: ANN401 - a number, or a sequence of two
    """Return the (height, width) that a configuration gives as one number or as two."""
    return (given, given) if isinstance(given, int) else tuple(given)


OURS = (PackagedTowerConfig.model_type, S2TowerConfig.model_type, PatchTowerConfig.model_type)
"""Model types that transformers knows only once this module is imported."""

for _config, _model in (
    (PackagedTowerConfig, PackagedTower),
    (S2TowerConfig, S2Tower),
    (PatchTowerConfig, PatchTower),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
