import pytest

from medssl.config import EncoderConfig, FinetuneConfig, ResourcesConfig, TaskConfig
from medssl.train import footprint
from medssl.train.footprint import PROCESS_BYTES, parallel_tasks, training_bytes
from medssl.train.resources import MIB

RESNET_50 = EncoderConfig(depth=50)
GIB = 1024 * MIB


def settings(**changes: object) -> FinetuneConfig:
    base = {"num_steps": 1, "batch_size": 64, "learning_rates": [0.1], "label_fractions": [1.0]}
    return FinetuneConfig.model_validate(base | changes)


def test_resnet_50_takes_its_weights_four_times_and_its_activations_once_an_image() -> None:
    """23.51 million weights (spec 1.2); 22 million activations of 224 px, batch norm's counted again."""
    small, large = (
        training_bytes(RESNET_50, settings(batch_size=size), TaskConfig(), channels=3) for size in (2, 1002)
    )
    per_image = (large - small) / 1000
    assert 23.5e6 * 16 < small - 2 * per_image - PROCESS_BYTES < 23.6e6 * 16
    assert 22e6 * 4 < per_image < 40e6 * 4


def test_half_precision_halves_activations_and_a_head_has_none() -> None:
    wide = training_bytes(RESNET_50, settings(), TaskConfig(), channels=1)
    half = training_bytes(RESNET_50, settings(precision="bf16"), TaskConfig(), channels=1)
    head = training_bytes(RESNET_50, settings(trainable="head"), TaskConfig(), channels=1)
    assert 0.5 < (half - PROCESS_BYTES) / (wide - PROCESS_BYTES) < 0.6
    assert head < PROCESS_BYTES + 200 * MIB


def test_cases_of_several_images_and_wider_or_other_networks_take_more() -> None:
    base = training_bytes(RESNET_50, settings(), TaskConfig(), channels=3)
    cases = training_bytes(RESNET_50, settings(), TaskConfig(kind="conditions"), channels=3)
    wider = training_bytes(EncoderConfig(depth=50, width=4), settings(), TaskConfig(), channels=3)
    bit = EncoderConfig(family="bit", depth=50, input_channels=3)
    assert cases > 4 * base
    assert wider > 3 * base
    assert training_bytes(bit, settings(), TaskConfig(), channels=1) > base


@pytest.mark.parametrize(
    ("cores", "memory", "num_tasks", "resources", "expected"),
    [
        (16, 64 * GIB, 5, {}, 2),
        (16, 64 * GIB, 1, {}, 1),  # no more than there are
        (1, 64 * GIB, 5, {}, 1),
        (4, 64 * GIB, 5, {"processes": 4}, 1),
        (4, 64 * GIB, 5, {"threads_per_process": 2}, 2),
        (16, 4 * GIB, 5, {}, 1),  # two of them would not fit
        (16, 40 * GIB, 5, {"cache_mib": 30_000}, 1),
    ],
)
def test_as_many_tasks_run_at_a_time_as_cores_memory_and_the_runner_allow(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, num_tasks: int, resources: dict[str, int], expected: int
) -> None:
    monkeypatch.setattr(footprint, "num_cores", lambda: cores)
    monkeypatch.setattr(footprint, "num_memory_bytes", lambda: memory)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    own = ResourcesConfig.model_validate({"parallel_tasks": 0} | resources)
    small = EncoderConfig(depth=18, width=0.25)
    args = ([small, RESNET_50], settings(), TaskConfig(), own)
    assert parallel_tasks(*args, channels=1, num_tasks=num_tasks) == expected
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert parallel_tasks(*args, channels=1, num_tasks=num_tasks) == 1
