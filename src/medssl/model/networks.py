"""Encoders by their settings, SimCLR's ResNet v1, its projection head and a linear classifier.

Shape suffixes: N images, M cases, C channels, H and W pixels, D representation, K classes.

By default not torchvision's ResNet: the width multiplies every filter count, the first block of every group has a
projection shortcut, and the max-pool pads as TensorFlow's "SAME", so that published SimCLR weights fit. The latter
two are settings, so that torchvision's weights fit, too.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medssl.architecture import (
    BASIC_LAYERS,
    BOTTLENECK_EXPANSION,
    BOTTLENECK_LAYERS,
    GROUP_FILTERS,
    GROUP_STRIDES,
    PROJECTION_DIM,
)
from medssl.config import EncoderConfig, Fusion
from medssl.exit_codes import BadInputError
from medssl.model.encoder import Encoder

# TensorFlow's decay of 0.9 keeps 90 % of the old statistic; torch's momentum is the share of the new one.
BATCH_NORM_MOMENTUM: Final = 1 - 0.9
BATCH_NORM_EPS: Final = 1e-5
# Standard deviation of a unit normal cut at +-2; divided by it, the truncated draw's variance is 1 / fan_in.
TRUNCATED_NORMAL_STD: Final = 0.87962566103423978


def _batch_norm(num_channels: int, *, zero_gamma: bool = False) -> nn.BatchNorm2d:
    """Batch norm with SimCLR's constants; `zero_gamma` makes a residual branch start as zero."""
    norm = nn.BatchNorm2d(num_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
    if zero_gamma:
        nn.init.zeros_(norm.weight)
    return norm


def _conv(in_channels: int, out_channels: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias, padded by kernel // 2 on every side whatever the stride ("fixed padding")."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    std = math.sqrt(1 / (in_channels * kernel * kernel)) / TRUNCATED_NORMAL_STD
    nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
    return conv


def _max_pool_same(images_NCHW: Tensor) -> Tensor:
    """3x3 max-pool of stride 2 with TensorFlow's "SAME" padding.

    An even side is padded by one row after the image only, an odd side by one row before and after; so on
    even sides the windows lie one pixel later than with torch's `padding=1`. `ceil_mode` is the trailing row.
    """
    height, width = images_NCHW.shape[-2:]
    return functional.max_pool2d(images_NCHW, 3, stride=2, padding=(height % 2, width % 2), ceil_mode=True)


class _Block(nn.Module):
    """Residual block: branch plus shortcut, then ReLU (v1, post-activation)."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return functional.relu(self.branch(x_NCHW) + self.shortcut(x_NCHW))


def _block(in_channels: int, filters: int, *, stride: int, is_bottleneck: bool, has_projection: bool) -> _Block:
    """One block of a group; the stride sits on the (first) 3x3 convolution and on the projection."""
    out_channels = filters * BOTTLENECK_EXPANSION if is_bottleneck else filters
    if is_bottleneck:
        head = [_conv(in_channels, filters, kernel=1), _batch_norm(filters), nn.ReLU()]
        body = [_conv(filters, filters, kernel=3, stride=stride), _batch_norm(filters), nn.ReLU()]
        tail = [_conv(filters, out_channels, kernel=1), _batch_norm(out_channels, zero_gamma=True)]
    else:
        head = []
        body = [_conv(in_channels, filters, kernel=3, stride=stride), _batch_norm(filters), nn.ReLU()]
        tail = [_conv(filters, filters, kernel=3), _batch_norm(filters, zero_gamma=True)]
    shortcut: nn.Module = nn.Identity()
    if has_projection:
        projection = _conv(in_channels, out_channels, kernel=1, stride=stride)
        shortcut = nn.Sequential(projection, _batch_norm(out_channels))
    return _Block(nn.Sequential(*head, *body, *tail), shortcut)


class ResNet(Encoder):
    """SimCLR-style ResNet v1 up to the global average pool.

    Attributes:
        representation_dim: D; 512 x width with basic blocks, 2048 x width with bottlenecks.

    References:
        He et al. 2016, Deep Residual Learning; Chen et al. 2020, section 2.1 and appendix B.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: float,
        in_channels: int = 3,
        pool_padding: Literal["same", "symmetric"] = "same",
        has_first_projection: bool = True,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        """Build a network with freshly drawn weights from torch's generator.

        Args:
            depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
            width: Multiplies every filter count, > 0; 1, 2 and 4 in the paper, fractions for small runs.
            in_channels: 3 for colour; 1 for radiographs kept as one channel.
            pool_padding: Of the max-pool: TensorFlow's "SAME", or torchvision's, one pixel on every side.
            has_first_projection: Whether the first group begins with a projection shortcut; False only with basic
                blocks, as in torchvision's ResNet-18 and 34.
            mean: See `Encoder`; by default images stay in [0, 1], as in SimCLR.
            std: See `Encoder`.

        Raises:
            ValueError: On a depth that is not listed, a width or channel count that leaves no filter, or bottlenecks
                without a first projection.
        """
        super().__init__(in_channels=in_channels, mean=mean, std=std)
        layers = BOTTLENECK_LAYERS.get(depth) or BASIC_LAYERS.get(depth)
        if layers is None:
            known = sorted(BASIC_LAYERS | BOTTLENECK_LAYERS)
            raise ValueError(f"depth is {depth}; expected one of {known}")
        stem_filters = round(GROUP_FILTERS[0] * width)
        if stem_filters < 1 or in_channels < 1:
            raise ValueError(f"width {width} and in_channels {in_channels} leave no filter; use larger values")
        is_bottleneck = depth in BOTTLENECK_LAYERS
        if is_bottleneck and not has_first_projection:
            raise ValueError(f"depth {depth} has bottlenecks, whose first group needs its projection; leave it in")
        self.pool_padding = pool_padding
        self.stem = nn.Sequential(
            _conv(in_channels, stem_filters, kernel=7, stride=2), _batch_norm(stem_filters), nn.ReLU()
        )
        channels = stem_filters
        groups: list[nn.Sequential] = []
        for base_filters, group_stride, num_blocks in zip(GROUP_FILTERS, GROUP_STRIDES, layers, strict=True):
            filters = round(base_filters * width)
            blocks = []
            for number in range(num_blocks):
                is_first = number == 0
                stride = group_stride if is_first else 1
                projects = is_first and (has_first_projection or bool(groups))
                blocks.append(
                    _block(channels, filters, stride=stride, is_bottleneck=is_bottleneck, has_projection=projects)
                )
                channels = filters * BOTTLENECK_EXPANSION if is_bottleneck else filters
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.representation_dim = channels

    def represent(self, images_NCHW: Tensor) -> Tensor:
        """Representations, shape (N, D).

        The network divides each side by 32 before it averages: any side works, and 64 pixels leave 2x2
        positions. In training mode one image alone with sides of at most 32 has a single value per channel in
        the last group, which batch norm refuses.
        """
        x_NCHW = self.stem(images_NCHW)
        if self.pool_padding == "same":
            x_NCHW = _max_pool_same(x_NCHW)
        else:
            x_NCHW = functional.max_pool2d(x_NCHW, 3, stride=2, padding=1)
        return torch.mean(self.groups(x_NCHW), dim=(2, 3))


def build_encoder(config: EncoderConfig, *, image_channels: int) -> Encoder:
    """The encoder that a study's settings describe, with freshly drawn weights from torch's generator.

    Args:
        config: Family, depth, width and what imported weights need.
        image_channels: Of the images it will see; the network has as many unless the settings say otherwise.

    Raises:
        BadInputError: The weights take one channel and the images have three.
    """
    in_channels = config.input_channels or image_channels
    if in_channels < image_channels:
        raise BadInputError(
            f"the encoder takes images of {in_channels} channel and these have {image_channels}; "
            "set shards.channels to 1"
        )
    scale = {"mean": config.input_mean, "std": config.input_std} if config.input_mean else {}
    if config.family == "bit":
        # Here: timm takes two seconds to import, and only this family needs it.
        from medssl.model.bit import BiT

        return BiT(depth=config.depth, width=config.width, in_channels=in_channels, **scale)
    return ResNet(
        depth=config.depth,
        width=config.width,
        in_channels=in_channels,
        pool_padding=config.pool_padding,
        has_first_projection=config.has_first_projection,
        **scale,
    )


class ProjectionHead(nn.Module):
    """SimCLR's two-layer head: linear, BN, ReLU, linear, BN without shift; not normalised here.

    References:
        Chen et al. 2020, section 2.1; the batch norms and N(0, 0.01²) weights as in Google's code.
    """

    def __init__(self, representation_dim: int, hidden_dim: int | None = None, out_dim: int = PROJECTION_DIM) -> None:
        """Build the head; `hidden_dim` None means as wide as the representation."""
        super().__init__()
        hidden_dim = representation_dim if hidden_dim is None else hidden_dim
        scale_only = nn.BatchNorm1d(out_dim, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
        scale_only.register_parameter("bias", None)
        self.layers = nn.Sequential(
            nn.Linear(representation_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM),
            nn.ReLU(),
            nn.Linear(hidden_dim, out_dim, bias=False),
            scale_only,
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)

    def forward(self, representation_ND: Tensor) -> Tensor:
        """Projections z, shape (N, out_dim)."""
        z_ND: Tensor = self.layers(representation_ND)
        return z_ND


class Head(nn.Linear):
    """A linear classifier on representations, which fuses the images of a case.

    A case is the mean of its images' representations, or the mean of their probabilities (spec 2.1).
    """

    def __init__(self, representation_dim: int, num_classes: int, *, std: float, fusion: Fusion) -> None:
        """Draw the weights as N(0, std²); the bias starts at zero."""
        super().__init__(representation_dim, num_classes)
        self.fusion = fusion
        nn.init.normal_(self.weight, std=std)
        nn.init.zeros_(self.bias)

    def forward(self, representation_ND: Tensor, fusion_MN: Tensor | None = None) -> Tensor:
        """Logits in float32 whatever the encoder's precision, shape (N, K), or (M, K) of cases; see `Classifier`.

        The eight bits of bfloat16 would tie a great part of the scores, by which units are ranked.
        """
        device = representation_ND.device.type
        # The meta device, on which shapes and operations are counted, has no autocast to turn off.
        reduced = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if reduced else nullcontext():
            representation_ND = representation_ND.float()
            if fusion_MN is None:
                return super().forward(representation_ND)
            if self.fusion == "representation":
                return super().forward(fusion_MN @ representation_ND)
            return log_mean_probability(super().forward(representation_ND), fusion_MN)


def log_mean_probability(logits_NK: Tensor, fusion_MN: Tensor) -> Tensor:
    """Logarithm of the weighted mean of softmax probabilities over the images of each case.

    It is its own logits: its softmax is the mean, its log-softmax is itself. Finite for any finite logits, since
    probabilities that underflow are only ever added as logarithms.

    Args:
        logits_NK: Of images, any finite float.
        fusion_MN: Weight of each image in each case; each image belongs to exactly one, and rows sum to 1.

    Returns:
        float32 or wider, shape (M, K).
    """
    log_p_NK = functional.log_softmax(logits_NK.to(torch.promote_types(logits_NK.dtype, torch.float32)), dim=1)
    weight_N, case_N = fusion_MN.max(dim=0)
    index_NK = case_N[:, None].expand_as(log_p_NK)
    lowest_MK = log_p_NK.new_full((len(fusion_MN), log_p_NK.shape[1]), -math.inf)
    peak_MK = lowest_MK.scatter_reduce(0, index_NK, log_p_NK.detach(), "amax")
    parts_NK = weight_N[:, None] * (log_p_NK - peak_MK[case_N]).exp()
    mean_MK: Tensor = torch.zeros_like(lowest_MK).index_add(0, case_N, parts_NK.to(lowest_MK.dtype))
    return mean_MK.log() + peak_MK


class Classifier(nn.Module):
    """An encoder and a linear head on its representation; the whole is fine-tuned, or the head alone."""

    def __init__(
        self, encoder: Encoder, *, num_classes: int, zero_init_head: bool = False, fusion: Fusion = "representation"
    ) -> None:
        """Attach a head of `num_classes` logits, N(0, 0.01²) or all zero; its bias starts at zero."""
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        self.head = Head(encoder.representation_dim, num_classes, std=0.0 if zero_init_head else 0.01, fusion=fusion)

    def forward(self, images_NCHW: Tensor, fusion_MN: Tensor | None = None) -> Tensor:
        """Logits of images in [0, 1], or of cases of several images.

        Args:
            images_NCHW: In [0, 1].
            fusion_MN: Weight of each image in each case, rows summing to 1. None: each image stands for itself.

        Returns:
            Shape (N, K), or (M, K) of cases.
        """
        logits: Tensor = self.head(self.encoder(images_NCHW), fusion_MN)
        return logits
