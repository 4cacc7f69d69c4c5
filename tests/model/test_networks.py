import math

import numpy as np
import pytest
import torch
from torch import nn

from medssl.model.networks import Classifier, ProjectionHead, ResNet, _max_pool_same


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


@pytest.mark.parametrize("options", [{"depth": 20, "width": 1}, {"depth": 18, "width": 0.001}])
def test_impossible_networks_are_refused(options):
    with pytest.raises(ValueError, match=r"depth is 20|no filter"):
        ResNet(**options)
