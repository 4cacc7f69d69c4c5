"""Counts of the encoders, against torch's own counter and the networks themselves."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medssl.architecture import classifier_head_size, encoder_size, projection_head_size, representation_dim
from medssl.config import EncoderConfig
from medssl.model.networks import Classifier, ProjectionHead, build_encoder
from medssl.train.checkpoint import save_weights

ENCODERS = [
    EncoderConfig(depth=18, width=0.25),
    EncoderConfig(depth=34, width=0.5, has_first_projection=False),
    EncoderConfig(depth=50, width=1),
    EncoderConfig(depth=50, width=4, input_channels=3),
    EncoderConfig(depth=152, width=2, pool_padding="symmetric"),
    EncoderConfig(family="bit", depth=50, width=1, input_channels=3),
    EncoderConfig(family="bit", depth=101, width=3, input_channels=3),
]


def names(config):
    return f"{config.family}{config.depth}x{config.width:g}"


def counted_flops(network, *shape, training=False):
    images = torch.empty(shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        result = network(images)
        if training:
            result.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", ENCODERS, ids=names)
@pytest.mark.parametrize(("channels", "side"), [(1, 224), (3, 97)])
def test_multiply_adds_and_parameters_are_those_of_the_network(config, channels, side):
    with torch.device("meta"):
        encoder = build_encoder(config, image_channels=channels)
    size = encoder_size(config, image_channels=channels, image_size_px=side)
    # BiT's scale of the images lies on the CPU, so its forward pass does not run without values.
    seen = config.input_channels or channels
    assert 2 * size.multiply_adds == counted_flops(encoder.represent, 1, seen, side, side)
    assert size.parameters == sum(parameter.numel() for parameter in encoder.parameters())
    running = [b for name, b in encoder.named_buffers() if name.endswith(("running_mean", "running_var"))]
    assert size.statistics == sum(buffer.numel() for buffer in running)
    assert representation_dim(config) == encoder.representation_dim


@pytest.mark.parametrize(("depth", "width", "millions"), [(50, 1, 23.51), (50, 4, 375.38), (152, 2, 232.25)])
def test_parameters_are_those_of_the_papers_backbones(depth, width, millions):
    size = encoder_size(EncoderConfig(depth=depth, width=width), image_channels=3, image_size_px=224)
    assert round(size.parameters / 1e6, 2) == millions


def test_a_resnet_50_takes_the_4_1_billion_multiply_adds_that_everybody_counts():
    size = encoder_size(EncoderConfig(depth=50), image_channels=3, image_size_px=224)
    assert size.multiply_adds / 1e9 == pytest.approx(4.1, abs=0.05)


@pytest.mark.parametrize("dim", [64, 2048])
def test_heads_are_counted_as_they_are_built(dim):
    with torch.device("meta"):
        projection, images = ProjectionHead(dim).eval(), torch.empty(1, dim)
        config = EncoderConfig(depth=18, width=dim / 512 if dim < 512 else 4)
        classifier = Classifier(build_encoder(config, image_channels=1), num_classes=27)
    size = projection_head_size(dim)
    assert size.parameters == sum(parameter.numel() for parameter in projection.parameters())
    with FlopCounterMode(display=False) as counter:
        projection(images)
    assert 2 * size.multiply_adds == counter.get_total_flops()
    whole = encoder_size(config, image_channels=1, image_size_px=64) + classifier_head_size(dim, 27)
    assert whole.parameters == sum(parameter.numel() for parameter in classifier.parameters())
    assert 2 * whole.multiply_adds == counted_flops(classifier, 1, 1, 64, 64)


@pytest.mark.parametrize("config", ENCODERS[2:6], ids=names)
def test_a_training_step_takes_three_forward_passes(config):
    with torch.device("meta"):
        encoder = build_encoder(config, image_channels=3)
    network, shape = encoder.represent, (2, 3, 224, 224)
    ratio = counted_flops(network, *shape, training=True) / counted_flops(network, *shape)
    # The stem's gradient towards the image is not needed.
    assert 2.9 < ratio <= 3


def test_a_file_of_weights_takes_four_bytes_a_number(tmp_path):
    config = EncoderConfig(depth=18, width=0.5)
    save_weights(build_encoder(config, image_channels=3), tmp_path / "encoder")
    size = encoder_size(config, image_channels=3, image_size_px=64)
    assert size.num_bytes == pytest.approx((tmp_path / "encoder").stat().st_size, rel=0.01)
