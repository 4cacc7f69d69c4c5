"""One SimCLR step of ResNet-50 (forward, loss, backward, LARS) from ready batches: ours against lightly's.

    .venv/bin/python -m benchmarks.pretrain_step
    .venv/bin/python -m benchmarks.pretrain_step --device cuda --batch-size 512 --image-size-px 224 --largest-batch

Ours computes in bf16, lightly's as its documentation writes it: torchvision's ResNet-50, its projection head, loss and
LARS, float32, a forward pass a view. A figure is the time of a whole step; ours in float32 is measured too, to tell
what the number format gives. One JSON line comes last.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import alternate, report
from medssl.config import Precision, PretrainRun
from medssl.model.losses import nt_xent
from medssl.model.networks import ProjectionHead, ResNet
from medssl.train import contrastive
from medssl.train.distributed import Ranks
from medssl.train.optim import lars

OURS, OURS_FLOAT32, LIGHTLY = "ours, bf16", "ours, float32", "lightly, float32"
TEMPERATURE, LEARNING_RATE, WEIGHT_DECAY = 0.1, 0.3, 1e-6
DIM = 128


@dataclass(frozen=True)
class Setting:
    """What every subject trains on."""

    device: torch.device
    batch_size: int
    image_size_px: int

    def views(self) -> tuple[Tensor, Tensor]:
        """Both views, random and channels-last, since only their number and size count here."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, 3, self.image_size_px, self.image_size_px)
        first, second = (torch.rand(shape, generator=generator) for _ in range(2))
        return (
            first.to(self.device, memory_format=torch.channels_last),
            second.to(self.device, memory_format=torch.channels_last),
        )


class Ours:
    """Our step, as the training loop takes it."""

    def __init__(self, setting: Setting, precision: Precision, *, micro_batch_size: int = 0) -> None:
        settings = {"name": "a", "method": "simclr", "encoder": "e", "num_steps": 1, "temperature": TEMPERATURE}
        settings |= {"batch_size": setting.batch_size, "precision": precision, "micro_batch_size": micro_batch_size}
        self.run, self.ranks = PretrainRun.model_validate(settings), Ranks(0, 1, setting.device)
        torch.manual_seed(0)
        encoder = ResNet(depth=50, width=1)
        head = ProjectionHead(encoder.representation_dim, out_dim=DIM)
        self.model = contrastive.prepare(encoder, head, self.run, self.ranks).train()
        self.optimizer: torch.optim.Optimizer = lars(self.model, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.views = setting.views()

    def step(self) -> Tensor:
        """Loss of one step."""
        return contrastive.train_step(
            self.model, self.optimizer, self.views, self.run, self.ranks, learning_rate=LEARNING_RATE
        ).loss

    def loss(self, z_a_ND: Tensor, z_b_ND: Tensor) -> Tensor:
        """The loss alone."""
        return nt_xent(z_a_ND, z_b_ND, temperature=TEMPERATURE, reduction="code")


class Lightly:
    """The step of lightly's example, https://docs.lightly.ai/self-supervised-learning/examples/simclr.html."""

    def __init__(self, setting: Setting) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.utils.lars import LARS
        from torchvision.models import resnet50

        torch.manual_seed(0)
        backbone: nn.Module = resnet50()
        backbone.fc = nn.Identity()
        self.model = nn.Sequential(backbone, SimCLRProjectionHead(2048, 2048, DIM)).to(setting.device).train()
        self.criterion = NTXentLoss(temperature=TEMPERATURE)
        self.optimizer: torch.optim.Optimizer = LARS(
            self.model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY
        )
        self.views = tuple(view.contiguous() for view in setting.views())

    def step(self) -> Tensor:
        """Loss of one step."""
        z_a_ND, z_b_ND = (self.model(view) for view in self.views)
        loss: Tensor = self.criterion(z_a_ND, z_b_ND)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def loss(self, z_a_ND: Tensor, z_b_ND: Tensor) -> Tensor:
        """The loss alone."""
        loss: Tensor = self.criterion(z_a_ND, z_b_ND)
        return loss


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time of `work`, with everything that it has put on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def parts(subject: Ours | Lightly, setting: Setting) -> dict[str, float]:
    """Seconds that the loss with its gradient and the optimiser take alone; medians of 5."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(setting.batch_size, DIM, generator=generator) for _ in range(2)]
    z_a_ND, z_b_ND = (row.to(setting.device).requires_grad_() for row in rows)
    for parameter in subject.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    works: dict[str, Callable[[], Any]] = {
        "loss": lambda: subject.loss(z_a_ND, z_b_ND).backward(),
        "optimizer": subject.optimizer.step,
    }
    return {name: statistics.median(seconds(w, setting.device) for _ in range(5)) for name, w in works.items()}


def agreement(setting: Setting) -> dict[str, float]:
    """How far loss and gradient in bf16 are from those in float32, from the same weights."""
    found: dict[Precision, tuple[float, Tensor]] = {}
    precisions: tuple[Precision, ...] = ("float32", "bf16")
    for precision in precisions:
        subject = Ours(setting, precision)
        loss = contrastive.whole_gradients(subject.model, *subject.views, subject.run, subject.ranks).loss
        gradients = [p.grad.flatten() for p in subject.model.parameters() if p.grad is not None]
        found[precision] = (float(loss), torch.cat(gradients))
    cosine = functional.cosine_similarity(found["float32"][1], found["bf16"][1], dim=0)
    return {
        "relative_loss_difference": round(abs(found["bf16"][0] / found["float32"][0] - 1), 6),
        "gradient_cosine": round(float(cosine), 4),
    }


def largest_batch(make: Callable[[Setting], Ours | Lightly], setting: Setting) -> int:
    """The largest batch that fits on the GPU, found by doubling; 0 where the first does not."""
    fits, batch_size = 0, setting.batch_size
    while True:
        try:
            make(Setting(setting.device, batch_size, setting.image_size_px)).step()
        except torch.OutOfMemoryError:
            return fits
        finally:
            torch.cuda.empty_cache()
        fits, batch_size = batch_size, 2 * batch_size


def on_gpu(
    subjects: dict[str, Ours | Lightly], setting: Setting, step_s: dict[str, float], peak_tflops: float
) -> dict[str, Any]:
    """Peak memory of a step, above what all subjects hold between steps, and the products' speed."""
    with FlopCounterMode(display=False) as counter:
        subjects[OURS].step()
    tflops = {name: counter.get_total_flops() / took / 1e12 for name, took in step_s.items()}
    memory = {}
    for name, subject in subjects.items():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        seconds(subject.step, setting.device)
        memory[name] = round((torch.cuda.max_memory_allocated() - held) / 2**20)
    found: dict[str, Any] = {"peak_mib": memory, "tflops": {name: round(t, 1) for name, t in tflops.items()}}
    if peak_tflops:
        found["mfu"] = {name: round(t / peak_tflops, 3) for name, t in tflops.items()}
    return found


def main() -> None:
    """Take the steps in turn, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size-px", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak-tflops", type=float, default=0, help="of the GPU in bf16, for the share of it (MFU)")
    parser.add_argument("--largest-batch", action="store_true", help="also find it, on a GPU, by doubling")
    parser.add_argument("--quick", action="store_true", help="batch 8, 64 px, 3 repeats")
    options = parser.parse_args()
    if options.largest_batch and options.device == "cpu":
        parser.error("--largest-batch needs --device cuda")
    if options.quick:
        options.batch_size, options.image_size_px, options.repeats = 8, 64, 3
    torch.set_num_threads(options.threads)
    setting = Setting(torch.device(options.device), options.batch_size, options.image_size_px)
    makers: dict[str, Callable[[Setting], Ours | Lightly]] = {
        OURS: partial(Ours, precision="bf16"),
        OURS_FLOAT32: partial(Ours, precision="float32"),
        LIGHTLY: Lightly,
    }
    subjects = {name: make(setting) for name, make in makers.items()}
    for subject in subjects.values():
        subject.step()  # picks the kernels
    figures = alternate(
        {name: partial(seconds, subject.step, setting.device) for name, subject in subjects.items()},
        repeats=options.repeats,
    )
    step_s = {name: statistics.median(values) for name, values in figures.items()}
    shares = {
        name: {part: round(took / step_s[name], 4) for part, took in parts(subject, setting).items()}
        for name, subject in subjects.items()
    }
    detail: dict[str, Any] = {
        "batch_size": setting.batch_size,
        "image_size_px": setting.image_size_px,
        "threads": options.threads,
        "images_per_s": {name: round(2 * setting.batch_size / took, 2) for name, took in step_s.items()},
        "share_of_step": shares,
        **agreement(setting),
    }
    if options.device == "cuda":
        detail |= {"gpu": torch.cuda.get_device_name()}
        detail |= on_gpu(subjects, setting, step_s, options.peak_tflops)
    if options.largest_batch:
        subjects.clear()
        detail["largest_batch"] = {name: largest_batch(make, setting) for name, make in makers.items()}
    print(json.dumps(detail["share_of_step"]))
    report(figures, name="pretrain_step", unit="s/step", ours=OURS, peer=LIGHTLY, detail=detail)


if __name__ == "__main__":
    main()
