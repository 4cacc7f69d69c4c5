"""The process group of one training task: started by torchrun, one process included."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medssl.model.sync_norm import synchronised


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        rank: 0 … world_size - 1.
        world_size: Number of processes.
        device: Where this process computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks for all."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """All ranks, or None of one alone."""
        return dist.group.WORLD if self.world_size > 1 else None

    @torch.no_grad()
    def gather(self, z_ND: Tensor) -> Tensor:
        """Rows of all ranks in rank order, (W·N, D), to be measured: no gradient leads back to a rank.

        Every rank has equally many. One alone gets `z_ND` itself.
        """
        if self.world_size == 1:
            return z_ND
        gathered = z_ND.new_empty(self.world_size * len(z_ND), *z_ND.shape[1:])
        dist.all_gather_single(gathered, z_ND.contiguous())
        return gathered

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` on this device in channels-last layout (faster everywhere), one model over all ranks.

        Gradients are averaged over the ranks, and batch norms see the rows of all ranks, which keeps their running
        statistics equal too.
        """
        module = module.to(device=self.device).to(memory_format=torch.channels_last)
        if self.group is None:
            return module
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            devices = [self.device.index]
        else:
            module = synchronised(module, self.group)
            devices = None
        return nn.parallel.DistributedDataParallel(
            module, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def weight_of(self, count: Tensor) -> Tensor:
        """Factor by which a mean over `count` terms of this rank enters the mean over the terms of all ranks.

        DistributedDataParallel averages the ranks' gradients as if each had equally many terms.
        """
        total = count.detach().clone().float()
        if self.world_size > 1:
            dist.all_reduce(total)
        return self.world_size * count / total.clamp(min=1)

    def total(self, values: Tensor) -> Tensor:
        """Sum of the ranks' tensors of one shape, on the CPU; every rank gets the same."""
        if self.world_size == 1:
            return values
        shared = values.to(self.device)
        dist.all_reduce(shared)
        return shared.cpu()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank; every rank gets the same answer."""
        if self.world_size == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared.item())

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that torchrun started: NCCL on GPUs, gloo on CPUs; alone without torchrun."""
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world_size, device)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


class StopRequest:
    """Remembers a SIGTERM, so that a training loop can save its state between two steps and end."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
