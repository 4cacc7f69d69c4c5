"""How much memory fine-tuning takes, from its settings alone, and how many tasks of it one machine carries at a time.

Networks are built without values, so nothing is computed and nothing large is held.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from medssl.config import EncoderConfig, FinetuneConfig, ResourcesConfig, TaskConfig
from medssl.model.encoder import Encoder
from medssl.model.networks import build_encoder
from medssl.train.batches import AHEAD
from medssl.train.resources import CACHE_SHARE, MIB, num_cores, num_memory_bytes

MAX_PARALLEL_TASKS = 2  # the cap of kfp.local
# The interpreter, its libraries and what they compute with: found with ResNet-50, for which all together then gives 3 %
# more than was measured, in float32 and in bf16.
PROCESS_BYTES = 1000 * MIB
COPIES = 4  # of the weights: themselves, gradients, momentum, and the best so far
FLOAT_BYTES = 4
TRIED = 2  # images; batch norm refuses a single value a channel


def parallel_tasks(
    encoders: Iterable[EncoderConfig],
    settings: FinetuneConfig,
    task: TaskConfig,
    resources: ResourcesConfig,
    *,
    channels: int,
    num_tasks: int,
) -> int:
    """Fine-tuning tasks that run at a time, 1 to 2: as many as there are, and as cores and memory allow.

    A machine with a GPU runs one, since every task would take the same GPU. Decoded images never take more than their
    share of the memory, however many tasks there are (`resources.cache_bytes`), unless the study says how much.

    Args:
        encoders: Of all tasks; the largest decides.
        settings: Of the fine-tuning.
        task: Its kind tells how many images a step holds at most.
        resources: Of the study.
        channels: Of the images.
        num_tasks: Of the study.
    """
    if torch.cuda.is_available():
        return 1
    cached = resources.cache_mib * MIB
    needed = max(training_bytes(encoder, settings, task, channels=channels) for encoder in encoders) + cached
    memory = num_memory_bytes() * (1 if cached else 1 - CACHE_SHARE)
    by_memory = int(memory // (needed * resources.processes))
    by_cores = num_cores() // (resources.processes * max(1, resources.threads_per_process))
    return max(1, min(MAX_PARALLEL_TASKS, num_tasks, by_memory, by_cores))


def training_bytes(encoder: EncoderConfig, settings: FinetuneConfig, task: TaskConfig, *, channels: int) -> int:
    """Memory of one process, decoded images not counted: libraries, weights, activations and batches."""
    with torch.device("meta"):
        network = build_encoder(encoder, image_channels=channels)
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    most_images = task.max_images_per_case if task.kind == "conditions" else 1
    num_images = settings.batch_size * most_images
    pixels = settings.image_size_px**2 * channels
    batches = num_images * pixels * (1 + AHEAD + FLOAT_BYTES)
    if settings.trainable == "head":
        return PROCESS_BYTES + FLOAT_BYTES * num_weights + batches
    kept = _num_activations(network, encoder.input_channels or channels, settings.image_size_px) * num_images
    width = FLOAT_BYTES if settings.precision == "float32" else FLOAT_BYTES // 2
    return PROCESS_BYTES + COPIES * FLOAT_BYTES * num_weights + kept * width + batches


def _num_activations(network: Encoder, channels: int, size_px: int) -> int:
    """Numbers that one image leaves in the layers of a network until the backward pass."""
    counted = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        counted += output.numel() if isinstance(output, Tensor) else 0

    handles = [layer.register_forward_hook(count) for layer in network.modules() if not list(layer.children())]
    network.represent(torch.empty(TRIED, channels, size_px, size_px, device="meta"))
    for handle in handles:
        handle.remove()
    return counted // TRIED
