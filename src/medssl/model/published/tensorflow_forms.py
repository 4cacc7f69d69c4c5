"""Formats of SimCLR's own checkpoints: TensorFlow 1's variables by number, TensorFlow 2's by their place."""

import re
from collections.abc import Mapping

from medssl.architecture import BOTTLENECK_LAYERS
from medssl.config import EncoderConfig
from medssl.model.published.form import Form, resnets
from medssl.model.published.torch_forms import SIMCLR_CITES
from medssl.model.published.units import SHORTCUT, STEM, TENSORFLOW_NORM, Unit, names_by_ours

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_TF2_MODEL = "model/resnet_model"


def _numbered(order: int, _: Unit) -> tuple[str, str]:
    number = f"_{order}" if order else ""
    return f"base_model/conv2d{number}", f"base_model/batch_normalization{number}"


def _tf1_names(config: EncoderConfig) -> dict[str, str]:
    return names_by_ours(config, _numbered, kernel="kernel", norm=TENSORFLOW_NORM, separator="/")


def _tf2_names(config: EncoderConfig) -> dict[str, str]:
    is_bottleneck = config.depth in BOTTLENECK_LAYERS
    branch, shortcut, step = (
        ("conv_relu_dropblock_layers", "projection_layers", 3)  # each third of its layers is DropBlock
        if is_bottleneck
        else ("conv2d_bn_layers", "shortcut_layers", 2)
    )

    def placed(_: int, unit: Unit) -> tuple[str, str]:
        if unit.group == STEM:
            stem = f"{_TF2_MODEL}/initial_conv_relu_max_pool"
            return f"{stem}/0/conv2d", f"{stem}/2/bn"
        block = f"{_TF2_MODEL}/block_groups/{unit.group}/layers/{unit.block}"
        if unit.number == SHORTCUT:
            return f"{block}/{shortcut}/0/conv2d", f"{block}/{shortcut}/1/bn"
        return f"{block}/{branch}/{step * unit.number}/conv2d", f"{block}/{branch}/{step * unit.number + 1}/bn"

    return names_by_ours(config, placed, kernel="kernel", norm=TENSORFLOW_NORM, separator="/", ending=VALUE)


def _head(layer: str, norm: str, ending: str = "") -> Mapping[str, str]:
    names = {}
    for number, own in enumerate(("0", "3")):
        names[f"layers.{own}.weight"] = f"{layer.format(number)}/dense/kernel{ending}"
        for ours, theirs in TENSORFLOW_NORM.items():
            names[f"layers.{int(own) + 1}.{ours}"] = f"{layer.format(number)}/{norm}/{theirs}{ending}"
    return names


TENSORFLOW_FORMS = (
    Form(
        name="simclr_tf1",
        cites=SIMCLR_CITES,
        fits=lambda checkpoint: "base_model/conv2d/kernel" in checkpoint.tensors,
        candidates=resnets(like_torchvision=False),
        names=_tf1_names,
        # Optimiser slots, the averaged copy that some checkpoints hold, heads, the step.
        left_out=re.compile(r"/(Momentum|LARSOptimizer[^/]*|ExponentialMovingAverage)$|^(?!base_model/)"),
        is_hwio=True,
        head_names=_head("head_contrastive/nl_{}", "batch_normalization"),
        head=re.compile(r"^head_contrastive/.*(kernel|gamma|beta|moving_mean|moving_variance)$"),
    ),
    Form(
        name="simclr_tf2",
        cites=SIMCLR_CITES,
        fits=lambda checkpoint: f"{_TF2_MODEL}/initial_conv_relu_max_pool/0/conv2d/kernel{VALUE}" in checkpoint.tensors,
        candidates=resnets(like_torchvision=False),
        names=_tf2_names,
        left_out=re.compile(rf"/\.OPTIMIZER_SLOT/|^(?!{_TF2_MODEL}/)"),
        is_hwio=True,
        head_names=_head("model/_projection_head/linear_layers/{}", "bn_relu/bn", VALUE),
        head=re.compile(r"^model/_projection_head/(?!.*/\.OPTIMIZER_SLOT/)"),
    ),
)
