"""Turns a published checkpoint into an encoder here: finds its format and architecture, checks every name and shape."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medssl.architecture import BOTTLENECK_LAYERS
from medssl.config import EncoderConfig, validate
from medssl.model.encoder import Encoder
from medssl.model.networks import ProjectionHead, build_encoder
from medssl.model.published.bit_forms import BIT_FORMS
from medssl.model.published.files import open_checkpoint
from medssl.model.published.form import Form
from medssl.model.published.stored import FLOAT_TYPES, Checkpoint, Stored, WeightsError, examples
from medssl.model.published.tensorflow_forms import TENSORFLOW_FORMS, VALUE
from medssl.model.published.torch_forms import TORCH_FORMS

FORMS = {form.name: form for form in (*TORCH_FORMS, *TENSORFLOW_FORMS, *BIT_FORMS)}
AUTO = "auto"
STEM_FILTERS = 64  # of every stem at width 1
STEM_KERNEL = 7
_COUNT = "num_batches_tracked"  # which training here does not read: batch norms have a fixed momentum


@dataclass(frozen=True)
class Imported:
    """An encoder with published weights.

    Attributes:
        config: As a study names it.
        encoder: With the weights.
        head: The projection head, where the file has one of the form here.
        head_note: "imported", or why there is none.
        form: The format that was read.
        digests: SHA-256 in hex of each file, by what its name ends with.
        left_out: Names of tensors that are no part of the encoder or its head, and of what lay beside all tensors;
            not of batch norms' counts of batches, which nothing here reads.
    """

    config: EncoderConfig
    encoder: Encoder
    head: ProjectionHead | None
    head_note: str
    form: Form
    digests: Mapping[str, str]
    left_out: tuple[str, ...]


def convert(
    path: Path,
    *,
    form: str = AUTO,
    depth: int | None = None,
    width: float | None = None,
    input_mean: Sequence[float] | None = None,
    input_std: Sequence[float] | None = None,
    sha256: str | None = None,
) -> Imported:
    """Read a file of weights into an encoder.

    Args:
        path: safetensors, .npz, a zip file of torch's, or a TensorFlow checkpoint's .index or prefix.
        form: One of `FORMS`, or "auto": by the names in the file.
        depth: What is expected; None: whichever fits the names best.
        width: What is expected; None: by the size of the first convolution.
        input_mean: What the weights expect where it is not what is usual in this format; empty: images in [0, 1].
        input_std: The same of the deviation.
        sha256: What the file's digest must be (of a TensorFlow checkpoint, that of a file of values); None: anything.

    Raises:
        WeightsError: The file cannot be used; the message says what was found and what to do.
    """
    checkpoint = open_checkpoint(path)
    if sha256 is not None and sha256.lower() not in checkpoint.digests.values():
        raise WeightsError(
            f"{path.name}: its SHA-256 is {', '.join(checkpoint.digests.values())}; expected {sha256}; "
            "download it again"
        )
    chosen = _form(checkpoint, form, path.name)
    config = _config(checkpoint, chosen, path.name, depth=depth, width=width)
    if input_mean is not None or input_std is not None:
        own = {"input_mean": tuple(input_mean or ()), "input_std": tuple(input_std or ())}
        config = validate(EncoderConfig, {**config.dump(), **own}, path.name)
    names = chosen.names(config)
    with torch.device("meta"):
        encoder = build_encoder(config, image_channels=config.input_channels or 3)
    others = [name for name in checkpoint.tensors if not chosen.left_out.search(name) and not chosen.head.search(name)]
    _fill(encoder, checkpoint, names, others, chosen, path.name)
    head, head_note, head_names = _head(checkpoint, chosen, encoder.representation_dim, path.name)
    used = {*names.values(), *head_names}
    unused = sorted(name for name in checkpoint.tensors if name not in used and not name.endswith(_COUNT))
    left_out = (*unused, *checkpoint.beside)
    return Imported(config, encoder, head, head_note, chosen, checkpoint.digests, left_out)


def _form(checkpoint: Checkpoint, name: str, where: str) -> Form:
    if name != AUTO:
        return FORMS[name]
    fitting = [form for form in FORMS.values() if form.fits(checkpoint)]
    if len(fitting) == 1 and (fitting[0].name != "torchvision" or _is_torchvisions_own(checkpoint, where)):
        return fitting[0]
    found = examples(sorted(checkpoint.tensors))
    if all(name.startswith("variables/") or not name.endswith(VALUE) for name in checkpoint.tensors) and any(
        name.endswith(VALUE) for name in checkpoint.tensors
    ):
        raise WeightsError(
            f"{where}: a TensorFlow 2 saved model, whose tensors have numbers in place of names; "
            "give the checkpoint (ckpt-…) of the training run"
        )
    if "conv1.weight" in checkpoint.tensors:
        raise WeightsError(
            f"{where}: torchvision's names, which conversions of SimCLR have too, whose images are scaled differently; "
            "give --format torchvision or simclr_v1 (known are files under the name NAME-DIGEST that torchvision gives)"
        )
    raise WeightsError(f"{where}: found tensors {found}; expected those of one of {', '.join(FORMS)}; give --format")


def _is_torchvisions_own(checkpoint: Checkpoint, where: str) -> bool:
    """Whether nothing else has such names, or the file's name ends with the beginning of its digest."""
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", where)
    is_named = named is not None and any(digest.startswith(named[1]) for digest in checkpoint.digests.values())
    return is_named or "layer1.0.downsample.0.weight" not in checkpoint.tensors  # SimCLR's ResNets all have it


def _config(checkpoint: Checkpoint, form: Form, where: str, *, depth: int | None, width: float | None) -> EncoderConfig:
    """The architecture whose names fit best, at the width of the first convolution."""
    candidates = [config for config in form.candidates if depth in (None, config.depth)]
    if not candidates:
        raise WeightsError(f"{where}: depth {depth} does not exist in format {form.name}; leave out --depth")

    def fit(config: EncoderConfig) -> int:
        names = set(form.names(config).values())
        present = len(names & checkpoint.tensors.keys())
        return 2 * present - len(names)

    config = max(candidates, key=fit)
    stem = next(iter(form.names(config).values()))
    if stem not in checkpoint.tensors:
        raise WeightsError(
            f"{where}: {stem} is missing; found {examples(sorted(checkpoint.tensors))}; is --format {form.name} right?"
        )
    shape = _as_ours(checkpoint.tensors[stem].shape, form)
    if len(shape) != 4 or shape[2:] != (STEM_KERNEL, STEM_KERNEL):
        raise WeightsError(
            f"{where}: {stem} has shape {list(checkpoint.tensors[stem].shape)[:8]}; expected a kernel of 7x7: networks "
            "with selective kernels (SK) or for small pictures (CIFAR) are not supported"
        )
    settings: dict[str, Any] = {"width": shape[0] / STEM_FILTERS if width is None else width}
    if shape[1] != config.input_channels:
        settings |= {"input_channels": shape[1], "input_mean": (), "input_std": ()}
    try:
        config = EncoderConfig.model_validate({**config.dump(), **settings})
    except ValueError:
        raise WeightsError(
            f"{where}: {stem} has shape {list(checkpoint.tensors[stem].shape)}, which is no stem of a network here: "
            f"expected 1 or 3 channels and {STEM_FILTERS} filters times the width"
        ) from None
    _refuse_wide(checkpoint, form, config, where)
    return config


def _refuse_wide(checkpoint: Checkpoint, form: Form, config: EncoderConfig, where: str) -> None:
    """Networks with bottlenecks wider than their stem (wide ResNets, ResNeXt) have the same names."""
    if config.family != "resnet" or config.depth not in BOTTLENECK_LAYERS:
        return
    name = form.names(config)["groups.0.0.branch.0.weight"]
    stored = checkpoint.tensors.get(name)
    if stored is None or len(stored.shape) != 4:
        return
    filters = _as_ours(stored.shape, form)[0]
    if filters > round(STEM_FILTERS * config.width):
        raise WeightsError(
            f"{where}: {name} has {filters} filters, more than the stem: a wide ResNet or a ResNeXt, which is not "
            "supported; give a plain ResNet"
        )


def _as_ours(shape: tuple[int, ...], form: Form) -> tuple[int, ...]:
    if not form.is_hwio:
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _fill(
    module: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str], others: Sequence[str], form: Form, where: str
) -> None:
    """Give `module`, which has no values yet, those of the file; every name and shape must fit.

    Args:
        module: On the device "meta".
        checkpoint: The file.
        names: Their name of each tensor of the module, but for counts of batches.
        others: Names in the file that can only be the module's.
        form: How the file orders axes.
        where: The file's name.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if not name.endswith(_COUNT)}
    missing = [their for their in names.values() if their not in checkpoint.tensors]
    unexpected = sorted(set(others) - set(names.values()))
    misfits = [
        f"{their} {list(checkpoint.tensors[their].shape)[:8]} (expected, as ours, {list(shapes[own])})"
        for own, their in names.items()
        if their in checkpoint.tensors and _as_ours(checkpoint.tensors[their].shape, form) != shapes[own]
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", misfits))
    if told := [f"{len(found)} {what}: {examples(found)}" for what, found in problems if found]:
        raise WeightsError(f"{where}: {'; '.join(told)}; are --format, --depth and --width right?")
    values = {own: _values(checkpoint.tensors[their], their, form, where) for own, their in names.items()}
    for own, value in values.items():
        if own.endswith("running_var") and (value < 0).any():
            raise WeightsError(f"{where}: {names[own]} holds negative variances; the weights are broken, get others")
    counts = {name: torch.zeros((), dtype=torch.long) for name in module.state_dict() if name.endswith(_COUNT)}
    module.load_state_dict(values | counts, assign=True)


def _values(stored: Stored, name: str, form: Form, where: str) -> Tensor:
    """The values in float32, in our order of axes."""
    if stored.dtype not in FLOAT_TYPES:
        raise WeightsError(f"{where}: {name} holds no floating-point numbers of 16, 32 or 64 bits; give such weights")
    value = stored.read()
    if form.is_hwio and value.ndim > 1:
        value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.t()
    value = value.to(torch.float32).contiguous()
    if not torch.isfinite(value).all():
        share = 1 - torch.isfinite(value).sum().item() / max(1, math.prod(value.shape))
        raise WeightsError(
            f"{where}: {name} is not finite in {share:.1%} of its values; the weights are broken, get others"
        )
    return value


def _head(
    checkpoint: Checkpoint, form: Form, representation_dim: int, where: str
) -> tuple[ProjectionHead | None, str, set[str]]:
    """The projection head, what became of it, and the names of its tensors; none unless it has the form here."""
    found = {name for name in checkpoint.tensors if form.head.search(name) and not name.endswith(_COUNT)}
    if not found:
        return None, "the file has none that is known; a run starts with a new one", set()
    with torch.device("meta"):
        head = ProjectionHead(representation_dim)
    shift = form.head_names["layers.4.bias"]
    names = {own: their for own, their in form.head_names.items() if their != shift}
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    fits = found - {shift} == set(names.values()) and all(
        _as_ours(checkpoint.tensors[their].shape, form) == shapes[own] for own, their in names.items()
    )
    if not fits:
        return None, "left out: its layers are others than two of the representation's width and 128", set()
    if shift in found and _values(checkpoint.tensors[shift], shift, form, where).any():
        return None, "left out: its last batch norm has a shift, and heads here have none", set()
    _fill(head, checkpoint, names, [], form, where)
    return head, "imported", found
