"""Published formats: whatever the source network computes, the imported encoder computes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.resnetv2 import resnetv2_50x1_bit
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import normalize

from medssl.config import EncoderConfig
from medssl.model.published.conversion import Imported, convert
from medssl.model.published.form import IMAGENET_MEAN, IMAGENET_STD
from medssl.model.published.stored import WeightsError
from tests.model.published_sources import (
    SimclrV2ResNet50,
    WideResNet50,
    contrastive_head,
    head_variables,
    scrambled,
    simclr_tf2_variables,
    simclr_variables,
    write_checkpoint,
)

FILTERS = 4  # of the stem: a sixteenth of the published width
WIDTH = FILTERS / 64


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def simclr() -> WideResNet50:
    network = scrambled(WideResNet50(FILTERS))
    assert isinstance(network, WideResNet50)
    return network


def agree(imported: Imported, expected: Tensor, images: Tensor) -> None:
    with torch.no_grad():
        found = imported.encoder.eval()(images)
    assert expected.std(dim=0).mean() > 0.01 * expected.abs().mean()  # the output follows the images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().mean().item())


@torch.no_grad()
def of_imagenet(network: nn.Module, images: Tensor) -> Tensor:
    """What a network gives whose input is scaled as torchvision scales it."""
    output: Tensor = network(normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD)))
    return output.flatten(start_dim=1)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_torchvisions_resnets_compute_the_same_here(depth: int, ending: str, images: Tensor, tmp_path: Path) -> None:
    network = scrambled(getattr(torchvision.models, f"resnet{depth}")(weights=None))
    path = tmp_path / f"network{ending}"
    torch.save(network.state_dict(), path) if ending == ".pth" else save_file(network.state_dict(), path)
    # As torchvision names its files.
    path = path.rename(tmp_path / f"network-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}{ending}")
    imported = convert(path)
    network.fc = nn.Identity()
    agree(imported, of_imagenet(network, images), images)
    assert imported.config == EncoderConfig(
        depth=depth,
        pool_padding="symmetric",
        has_first_projection=depth == 50,
        input_channels=3,
        input_mean=IMAGENET_MEAN,
        input_std=IMAGENET_STD,
    )
    assert (imported.head, imported.left_out) == (None, ("fc.bias", "fc.weight"))


def test_conversions_of_simclr_v1_compute_what_tensorflow_computes(
    simclr: WideResNet50, images: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save({"state_dict": simclr.state_dict()}, path)
    imported = convert(path, form="simclr_v1")
    with torch.no_grad():
        agree(imported, simclr(images), images)
    assert imported.config == EncoderConfig(depth=50, width=WIDTH, input_channels=3)


def test_the_names_of_torchvision_in_a_state_dict_are_not_guessed(simclr: WideResNet50, tmp_path: Path) -> None:
    torch.save({"state_dict": simclr.state_dict()}, tmp_path / "a.pth")
    # A narrow conversion that lies in no state_dict.
    bare = {name: torch.zeros(1) for name in simclr.state_dict()} | {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    torch.save(bare, tmp_path / "resnet50-0123abcd.pth")
    for name in ("a.pth", "resnet50-0123abcd.pth"):
        with pytest.raises(WeightsError, match="give --format torchvision or simclr_v1"):
            convert(tmp_path / name)
    named = {name: torch.zeros(1) for name in simclr.state_dict()} | {"conv1.weight": torch.zeros(128, 3, 7, 7)}
    torch.save({"state_dict": named}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=r"of another shape: bn1\.weight \[1\] \(expected, as ours, \[128\]"):
        convert(tmp_path / "b.pth")  # no other network is wider: its format is known


@pytest.mark.parametrize(("num_layers", "note"), [(2, "imported"), (3, "left out: its layers are others")])
def test_conversions_of_simclr_v2_compute_the_same_and_bring_a_head_of_two_layers(
    num_layers: int, note: str, images: Tensor, tmp_path: Path
) -> None:
    network = scrambled(SimclrV2ResNet50(FILTERS))
    head = contrastive_head(32 * FILTERS, num_layers)
    torch.save({"resnet": network.state_dict(), "head": head.state_dict()}, tmp_path / "r50_1x_sk0.pth")
    imported = convert(tmp_path / "r50_1x_sk0.pth")
    with torch.no_grad():
        representation = network(images)
        agree(imported, representation, images)
        assert imported.head_note.startswith(note)
        if imported.head is not None:
            expected = representation
            for layer in head.layers:
                expected = layer.eval()(expected)
            torch.testing.assert_close(imported.head.eval()(representation), expected, rtol=1e-5, atol=1e-5)
    assert {"resnet.fc.bias", "resnet.fc.weight"} <= set(imported.left_out)
    assert ("head.layers.6.weight" in imported.left_out) == (num_layers == 3)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_tensorflow_1_checkpoints_of_simclr_compute_the_same(
    num_shards: int, simclr: WideResNet50, images: Tensor, tmp_path: Path
) -> None:
    head = contrastive_head(32 * FILTERS, 2)
    variables = simclr_variables(simclr) | head_variables(head)
    variables["base_model/conv2d/kernel/Momentum"] = np.zeros((7, 7, 3, FILTERS), np.float32)
    variables["head_supervised/linear_layer/dense/kernel"] = np.zeros((2, 3), np.float32)
    write_checkpoint(tmp_path / "model.ckpt-225206", variables, num_shards=num_shards)
    imported = convert(tmp_path / "model.ckpt-225206.index")
    with torch.no_grad():
        representation = simclr(images)
        agree(imported, representation, images)
        expected = representation
        for layer in head.layers:
            expected = layer.eval()(expected)
        assert imported.head is not None
        torch.testing.assert_close(imported.head.eval()(representation), expected, rtol=1e-5, atol=1e-5)
    assert imported.left_out == (
        "base_model/conv2d/kernel/Momentum",
        "global_step",
        "head_supervised/linear_layer/dense/kernel",
    )
    assert sorted(imported.digests) == sorted(
        [".index", *(f".data-{i:05d}-of-{num_shards:05d}" for i in range(num_shards))]
    )


def test_tensorflow_2_checkpoints_of_simclr_compute_the_same(
    simclr: WideResNet50, images: Tensor, tmp_path: Path
) -> None:
    variables = simclr_tf2_variables(simclr)
    kernel = next(iter(variables)).removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
    variables[f"{kernel}/.OPTIMIZER_SLOT/optimizer/Momentum/.ATTRIBUTES/VARIABLE_VALUE"] = np.zeros(3, np.float32)
    write_checkpoint(tmp_path / "ckpt-1", variables)
    imported = convert(tmp_path / "ckpt-1")
    with torch.no_grad():
        agree(imported, simclr(images), images)
    assert len(imported.left_out) == 2


def test_a_tensorflow_2_saved_model_is_refused_by_name(tmp_path: Path) -> None:
    name = "variables/0/.ATTRIBUTES/VARIABLE_VALUE"
    write_checkpoint(tmp_path / "variables", {name: np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match="saved model, whose tensors have numbers in place of names"):
        convert(tmp_path / "variables")


def test_bits_npz_gives_what_timm_makes_of_it(images: Tensor, tmp_path: Path) -> None:
    theirs = resnetv2_50x1_bit(pretrained=False, num_classes=3)
    rng = np.random.default_rng(3)
    arrays: dict[str, np.ndarray] = {}

    def kernel(name: str, weight: Tensor) -> None:
        out, inside, height, width = weight.shape
        values = rng.standard_normal((height, width, inside, out), np.float32)
        arrays[f"resnet/{name}/standardized_conv2d/kernel"] = values

    def norm(name: str, module: nn.GroupNorm) -> None:
        for word in ("gamma", "beta"):
            arrays[f"resnet/{name}group_norm/{word}"] = rng.random(module.num_channels, np.float32)

    kernel("root_block", theirs.stem.conv.weight)
    norm("", theirs.norm)
    for number, stage in enumerate(theirs.stages, start=1):
        for index, unit in enumerate(stage.blocks, start=1):
            for letter, part in zip("abc", "123", strict=True):
                kernel(f"block{number}/unit{index:02d}/{letter}", getattr(unit, f"conv{part}").weight)
                norm(f"block{number}/unit{index:02d}/{letter}/", getattr(unit, f"norm{part}"))
            if index == 1:
                kernel(f"block{number}/unit01/a/proj", unit.downsample.conv.weight)
    arrays["resnet/head/conv2d/kernel"] = np.zeros((1, 1, 2048, 3), np.float32)
    arrays["resnet/head/conv2d/bias"] = np.zeros(3, np.float32)
    np.savez(tmp_path / "BiT-M-R50x1.npz", **arrays)

    imported = convert(tmp_path / "BiT-M-R50x1.npz")
    theirs.load_pretrained(str(tmp_path / "BiT-M-R50x1.npz"))
    with torch.no_grad():
        expected = theirs.eval().forward_head(theirs.forward_features(images * 2 - 1), pre_logits=True)
    agree(imported, expected, images)
    assert imported.config == EncoderConfig(family="bit", depth=50, width=1, input_channels=3)
    assert imported.left_out == ("resnet/head/conv2d/bias", "resnet/head/conv2d/kernel")

    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    again = convert(tmp_path / "model.safetensors")
    agree(again, expected, images)
    assert (again.form.name, again.left_out) == ("bit_timm", ("head.fc.bias", "head.fc.weight"))


def test_lightlys_checkpoints_compute_the_same(images: Tensor, tmp_path: Path) -> None:
    network = scrambled(torchvision.models.resnet18(weights=None))
    backbone = nn.Sequential(*list(network.children())[:-1])
    model = nn.Module()
    model.backbone, model.projection_head = backbone, lightly_head()
    path = tmp_path / "epoch=99-step=1000.ckpt"
    torch.save({"epoch": 99, "state_dict": model.state_dict(), "optimizer_states": [{"state": {}}]}, path)
    imported = convert(path)
    agree(imported, of_imagenet(backbone, images), images)
    assert imported.head_note == "left out: its last batch norm has a shift, and heads here have none"
    assert imported.left_out[-2:] == ("epoch", "optimizer_states")


def lightly_head() -> nn.Module:
    """lightly's projection head, of its own making where it is installed, with a trained shift."""
    try:
        from lightly.models.modules.heads import SimCLRProjectionHead
    except ImportError:
        head = nn.Module()
        linear = (nn.Linear(512, 512, bias=False), nn.Linear(512, 128, bias=False))
        head.layers = nn.Sequential(linear[0], nn.BatchNorm1d(512), nn.ReLU(), linear[1], nn.BatchNorm1d(128))
        return scrambled(head)
    return scrambled(SimCLRProjectionHead(512, 512, 128))


def test_solo_learns_checkpoints_compute_the_same_with_the_scale_that_was_trained_on(
    images: Tensor, tmp_path: Path
) -> None:
    network = scrambled(WideResNet50(FILTERS, pool=lambda x: functional.max_pool2d(x, 3, 2, 1)))
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items() if not name.startswith("fc")}
    state |= {"projector.0.weight": torch.zeros(4, 4), "classifier.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    imported = convert(tmp_path / "a.ckpt")
    agree(imported, of_imagenet(network, images), images)
    assert imported.left_out == ("classifier.weight", "projector.0.weight")
    own = convert(tmp_path / "a.ckpt", input_mean=(0.5,), input_std=(0.25,))
    with torch.no_grad():
        agree(own, network((images - 0.5) / 0.25), images)


def test_half_precision_becomes_float32(simclr: WideResNet50, images: Tensor, tmp_path: Path) -> None:
    half = {name: value.astype(np.float16) for name, value in simclr_variables(simclr).items()}
    imported = convert(write_checkpoint(tmp_path / "model.ckpt-1", half))
    assert {tensor.dtype for tensor in imported.encoder.parameters()} == {torch.float32}
    rounded = WideResNet50(FILTERS).eval()
    rounded.load_state_dict({name: t.half().to(t.dtype) for name, t in simclr.state_dict().items()})
    with torch.no_grad():
        agree(imported, rounded(images), images)
