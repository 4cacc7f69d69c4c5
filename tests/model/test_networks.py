import math

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from medssl.config import EncoderConfig
from medssl.exit_codes import BadInputError
from medssl.model.bit import BiT
from medssl.model.networks import (
    Classifier,
    Head,
    ProjectionHead,
    ResNet,
    _max_pool_same,
    build_encoder,
    log_mean_probability,
)


@pytest.mark.parametrize(("depth", "width", "millions"), [(50, 1, 23.51), (50, 4, 375.38), (152, 2, 232.25)])
def test_backbones_have_the_parameter_counts_of_the_paper(depth, width, millions):
    with torch.device("meta"):
        encoder = ResNet(depth=depth, width=width)
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 2) == millions
    assert encoder.representation_dim == 2048 * width


@pytest.mark.parametrize(("depth", "dim"), [(18, 128), (34, 128), (50, 512), (101, 512)])
@pytest.mark.parametrize("side", [48, 64])
def test_small_images_give_one_representation_each(depth, dim, side):
    encoder = ResNet(depth=depth, width=0.25, in_channels=1)
    representation = encoder(torch.rand(3, 1, side, side))
    assert encoder.representation_dim == dim
    assert representation.shape == (3, dim)
    assert torch.isfinite(representation).all()


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 7), (5, 8), (112, 112), (1, 2)])
def test_max_pool_windows_start_where_tensorflow_same_padding_puts_them(height, width):
    x = np.random.default_rng(0).normal(size=(height, width)).astype(np.float32)
    out = (math.ceil(height / 2), math.ceil(width / 2))
    # TensorFlow: total padding = max((ceil(n / 2) - 1) * 2 + 3 - n, 0), the smaller half before.
    before = [max((o - 1) * 2 + 3 - n, 0) // 2 for o, n in zip(out, x.shape, strict=True)]
    expected = np.empty(out, np.float32)
    for i in range(out[0]):
        for j in range(out[1]):
            top, left = 2 * i - before[0], 2 * j - before[1]
            expected[i, j] = x[max(top, 0) : top + 3, max(left, 0) : left + 3].max()
    np.testing.assert_array_equal(_max_pool_same(torch.from_numpy(x)[None, None])[0, 0].numpy(), expected)


def test_every_residual_branch_is_zero_at_the_start():
    encoder = ResNet(depth=50, width=0.25)
    zero_gammas = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    assert len(zero_gammas) == 3 + 4 + 6 + 3
    block = encoder.groups[0][1]
    x = torch.rand(2, 64, 8, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_first_block_of_every_group_has_a_projection_and_strides_sit_on_3x3():
    encoder = ResNet(depth=50, width=1)
    for number, group in enumerate(encoder.groups):
        projections = [isinstance(block.shortcut, nn.Sequential) for block in group]
        assert projections == [True] + [False] * (len(group) - 1)
        strided = [m.kernel_size[0] for m in group[0].branch if isinstance(m, nn.Conv2d) and m.stride[0] == 2]
        assert strided == ([] if number == 0 else [3])


def test_convolutions_start_with_variance_one_over_fan_in_within_two_deviations():
    encoder = ResNet(depth=18, width=1)
    for conv in (m for m in encoder.modules() if isinstance(m, nn.Conv2d)):
        assert conv.bias is None
        fan_in = conv.weight[0].numel()
        std = fan_in**-0.5
        assert conv.weight.std().item() == pytest.approx(std, rel=0.05)
        assert conv.weight.abs().max() <= 2 * std / 0.8796 + 1e-6


def test_batch_norms_have_the_constants_of_simclr():
    norms = [m for m in ResNet(depth=18, width=0.25).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, round(m.momentum, 12)) for m in norms} == {(1e-5, 0.1)}


def test_a_seed_draws_the_same_network():
    torch.manual_seed(3)
    first = ResNet(depth=18, width=0.25)(torch.full((2, 3, 32, 32), 0.5))
    torch.manual_seed(3)
    second = ResNet(depth=18, width=0.25)(torch.full((2, 3, 32, 32), 0.5))
    assert torch.equal(first, second)


def test_projection_head_scales_but_does_not_shift_its_output():
    head = ProjectionHead(64)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "layers.0.weight": (64, 64),
        "layers.1.weight": (64,),
        "layers.1.bias": (64,),
        "layers.3.weight": (128, 64),
        "layers.4.weight": (128,),
    }
    z = head(torch.rand(16, 64))
    z.square().sum().backward()
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(128), rtol=0, atol=1e-6)
    assert head.layers[0].weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_projection_head_becomes_synchronised_without_gaining_a_shift():
    head = nn.SyncBatchNorm.convert_sync_batchnorm(ProjectionHead(8, hidden_dim=4, out_dim=2))
    assert isinstance(head.layers[4], nn.SyncBatchNorm)
    assert head.layers[4].bias is None


@pytest.mark.parametrize("zero_init_head", [False, True])
def test_classifier_gives_logits_that_are_zero_only_on_request(zero_init_head):
    encoder = ResNet(depth=18, width=0.25, in_channels=1)
    classifier = Classifier(encoder, num_classes=5, zero_init_head=zero_init_head)
    logits = classifier(torch.rand(2, 1, 48, 48))
    assert logits.shape == (2, 5)
    assert classifier.num_classes == 5
    assert bool((logits == 0).all()) == zero_init_head


def test_a_case_is_classified_by_the_mean_of_its_images_representations():
    classifier = Classifier(ResNet(depth=18, width=0.25, in_channels=1), num_classes=3).eval()
    images = torch.rand(3, 1, 48, 48)
    fused = classifier(images, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    alone = classifier(images)  # the head is linear: the mean of the logits is that of the mean representation
    torch.testing.assert_close(fused, torch.stack([(alone[0] + alone[1]) / 2, alone[2]]))


def test_a_case_may_be_classified_by_the_mean_of_its_images_probabilities():
    encoder = ResNet(depth=18, width=0.25, in_channels=1)
    classifier = Classifier(encoder, num_classes=3, fusion="probability").eval()
    images = torch.rand(3, 1, 48, 48)
    fused = classifier(images, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])).softmax(dim=1)
    alone = classifier(images).softmax(dim=1)
    torch.testing.assert_close(fused, torch.stack([(alone[0] + alone[1]) / 2, alone[2]]))


def test_mean_probabilities_and_their_gradients_are_those_of_the_plain_formula():
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.zeros(3, 6, dtype=torch.float64)
    for case, images in enumerate([[0, 1, 2], [3], [4, 5]]):
        weights[case, images] = 1 / len(images)
    ours, plain = log_mean_probability(logits, weights), (weights @ logits.softmax(dim=1)).log()
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-14)
    torch.testing.assert_close(ours.log_softmax(dim=1), ours, rtol=0, atol=1e-14)  # it is its own log-softmax
    found, expected = (torch.autograd.grad(value[:, 1].sum(), logits, retain_graph=True)[0] for value in (ours, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_mean_probabilities_that_underflow_keep_a_loss_and_a_gradient():
    """Both images are sure of the first class by 1,000 and 3,000 nats: the mean is exp(-1000) / 2 for the second."""
    logits = torch.tensor([[1000.0, 0.0], [3000.0, 0.0]], requires_grad=True)
    loss = -log_mean_probability(logits, torch.tensor([[0.5, 0.5]]))[0, 1]
    assert loss.item() == pytest.approx(1000 + math.log(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20, "width": 1}, "depth is 20"),
        ({"depth": 18, "width": 0.001}, "no filter"),
        ({"depth": 50, "width": 1, "has_first_projection": False}, "leave it in"),
        ({"depth": 18, "width": 1, "mean": (0.5, 0.5), "std": (1, 1)}, "do not fit 3 channels"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


@pytest.mark.parametrize(("depth", "width"), [(18, 1), (50, 0.5)])
def test_a_bit_network_that_does_not_exist_is_refused(depth, width):
    with pytest.raises(ValueError, match="BiT has depths"):
        BiT(depth=depth, width=width)


@pytest.mark.parametrize(("depth", "width", "millions"), [(50, 1, 23.50), (101, 3, 381.79), (152, 4, 928.34)])
def test_bit_has_the_parameter_counts_that_are_published(depth, width, millions):
    with torch.device("meta"):
        encoder = BiT(depth=depth, width=width)
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 2) == millions
    assert encoder.representation_dim == 2048 * width


@pytest.fixture(scope="module")
def bit() -> BiT:
    torch.manual_seed(0)
    return BiT(depth=50, width=1).eval()


def test_bit_is_timms_network_without_its_classifier_on_images_scaled_to_minus_one_to_one(bit):
    theirs = timm.create_model("resnetv2_50x1_bit", pretrained=False, num_classes=0).eval()
    theirs.load_state_dict(bit.network.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(bit(images), theirs(images * 2 - 1))


def test_a_bit_unit_is_a_preactivated_bottleneck_of_standardised_kernels(bit):
    unit = bit.network.stages[0].blocks[1]
    x = torch.randn(1, 256, 5, 5)

    def convolved(x, conv):
        kernel = conv.weight.double()
        mean = kernel.mean(dim=(1, 2, 3), keepdim=True)
        kernel = (kernel - mean) / kernel.var(dim=(1, 2, 3), keepdim=True, correction=0).sqrt()
        return functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)

    def activated(x):
        groups = x.reshape(1, 32, -1)
        normal = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return normal.reshape(x.shape).relu()

    expected = x.double()
    for conv in (unit.conv1, unit.conv2, unit.conv3):
        expected = convolved(activated(expected), conv)
    with torch.no_grad():
        torch.testing.assert_close(unit(x), (expected + x.double()).float(), rtol=1e-4, atol=1e-4)


def test_settings_choose_the_encoder():
    with torch.device("meta"):
        assert isinstance(build_encoder(EncoderConfig(family="bit", depth=101, width=3), image_channels=3), BiT)
        small = build_encoder(EncoderConfig(depth=18, width=0.125), image_channels=1)
        taught = build_encoder(EncoderConfig(depth=18, has_first_projection=False, input_channels=3), image_channels=1)
    assert small.stem[0].in_channels == 1
    assert taught.stem[0].in_channels == 3
    assert isinstance(taught.groups[0][0].shortcut, nn.Identity)
    assert isinstance(taught.groups[1][0].shortcut, nn.Sequential)
    with pytest.raises(BadInputError, match="these have 3; set shards"):
        build_encoder(EncoderConfig(input_channels=1), image_channels=3)


def test_grey_images_are_repeated_and_scaled_as_the_weights_expect():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    config = EncoderConfig(depth=18, width=0.25, input_channels=3, input_mean=mean, input_std=std)
    torch.manual_seed(1)
    encoder = build_encoder(config, image_channels=1).eval()
    plain = ResNet(depth=18, width=0.25).eval()
    plain.load_state_dict(encoder.state_dict())  # the scale is no part of the state
    grey = torch.rand(2, 1, 48, 48)
    scaled = torch.cat([(grey - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(grey), plain(scaled))
        torch.testing.assert_close(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))


def test_a_symmetric_pool_is_torchs():
    torch.manual_seed(2)
    encoder = ResNet(depth=18, width=0.25, pool_padding="symmetric").eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder.groups(nn.MaxPool2d(3, 2, 1)(encoder.stem(images))).mean(dim=(2, 3))
        torch.testing.assert_close(encoder(images), expected)
        encoder.pool_padding = "same"
        assert not torch.allclose(encoder(images), expected)


@pytest.mark.parametrize("fusion", ["representation", "probability"])
def test_logits_have_the_resolution_of_float32_however_the_encoder_computes(fusion):
    torch.manual_seed(0)
    head = Head(16, 5, std=1.0, fusion=fusion)
    representation = torch.randn(64, 16)
    cases = torch.eye(32).repeat_interleave(2, dim=1) / 2
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = [head(representation.bfloat16()), head(representation.bfloat16(), cases)]
    rounded = representation.bfloat16().float()
    with torch.no_grad():
        expected = [head(rounded), head(rounded, cases)]
    for logits, own in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, own)
