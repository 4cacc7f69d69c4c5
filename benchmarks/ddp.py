"""SimCLR's step in two processes of one thread against one process of one thread with the same batch a process.

    .venv/bin/python -m benchmarks.ddp

The step is the product's: synchronised batch norms, negatives of both ranks, averaged gradients, LARS; the images are
made once. Efficiency is the time of the lone process over that of the two: 1 if the second process costs nothing. Two
processes that never speak to each other show how much of the loss is the machine's, whose cores share caches, memory
and other work. One JSON line comes last.
"""

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

from benchmarks.measure import alternate, ratio, show
from medssl.config import Precision

RANKS, ALONE, APART = "two ranks", "one process", "two processes apart"
SETTINGS: list[tuple[int, Precision]] = [(18, "float32"), (18, "bf16"), (50, "float32"), (50, "bf16")]


@dataclass(frozen=True)
class Work:
    """What each process does in a step.

    Attributes:
        depth: Of the ResNet.
        precision: Of the run.
        num_pairs: Pairs of views of each process.
        size_px: Side of the images.
        num_steps: Of one figure.
    """

    depth: int
    precision: Precision
    num_pairs: int
    size_px: int
    num_steps: int


def worker(work: Work, rank: int, world_size: int, port: int, orders: Connection) -> None:
    """One process: takes a step for every order and answers with the seconds it took."""
    os.environ.update(WORLD_SIZE=str(world_size), RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    import torch
    from torch import nn

    from medssl.config import PretrainRun
    from medssl.model.networks import ProjectionHead, ResNet
    from medssl.train.contrastive import prepare, train_step
    from medssl.train.distributed import process_group
    from medssl.train.optim import lars

    settings = {"method": "simclr", "encoder": "resnet", "num_steps": 1, "precision": work.precision}
    run = PretrainRun(name="ddp", batch_size=world_size * work.num_pairs, image_size_px=work.size_px, **settings)
    torch.set_num_threads(1)
    with process_group() as ranks:
        torch.manual_seed(0)
        encoder = ResNet(depth=work.depth, width=1)
        head = ProjectionHead(encoder.representation_dim)
        model = prepare(encoder, head, run, ranks).train()
        optimizer = lars(nn.Sequential(encoder, head), lr=0.1, weight_decay=1e-6)
        images = torch.rand(2 * work.num_pairs, 3, work.size_px, work.size_px)
        view_a, view_b = images.contiguous(memory_format=torch.channels_last).chunk(2)
        while orders.recv():
            begin = time.perf_counter()
            for _ in range(work.num_steps):
                train_step(model, optimizer, (view_a, view_b), run, ranks, learning_rate=0.1)
            orders.send((time.perf_counter() - begin) / work.num_steps)


@contextmanager
def processes(work: Work, num: int, *, world_size: int) -> Iterator[list[Connection]]:
    """Start `num` workers, in one process group if `world_size` says so, and end them."""
    with socket.create_server(("localhost", 0)) as reserved:
        port = reserved.getsockname()[1]
    context = get_context("spawn")
    started = []
    for number in range(num):
        own, theirs = context.Pipe()
        process = context.Process(target=worker, args=(work, number % world_size, world_size, port, theirs))
        process.start()
        started.append((process, own))
    try:
        yield [own for _, own in started]
    finally:
        for process, own in started:
            own.send(False)
            process.join()


def milliseconds(workers: Sequence[Connection]) -> float:
    """A step of all workers at once: the slowest one's time."""
    for one in workers:
        one.send(True)
    slowest: float = max(one.recv() for one in workers)
    return slowest * 1e3


def measured(work: Work, repeats: int) -> dict[str, list[float]]:
    """Milliseconds a step of the ranks, of one process and of two apart, in turn."""
    with ExitStack() as stack:
        ranks = stack.enter_context(processes(work, 2, world_size=2))
        apart = stack.enter_context(processes(work, 2, world_size=1))
        subjects = {
            ALONE: partial(milliseconds, apart[:1]),
            RANKS: partial(milliseconds, ranks),
            APART: partial(milliseconds, apart),
        }
        alternate(subjects, repeats=2)
        return alternate(subjects, repeats=repeats)


def main() -> None:
    """Measure every setting; print tables and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=64, help="of each process")
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--quick", action="store_true", help="ResNet-18, 8 pairs of 32 px, 3 repeats")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.pairs, options.size_px = 3, 8, 32
    efficiency, apart, medians = {}, {}, {}
    for depth, precision in SETTINGS[:2] if options.quick else SETTINGS:
        name = f"ResNet-{depth}, {precision}"
        work = Work(depth, precision, options.pairs, options.size_px, num_steps=1)
        figures = measured(work, options.repeats)
        print(name)
        show(figures, "ms")
        efficiency[name] = round(ratio(figures[RANKS], figures[ALONE]), 3)
        apart[name] = round(ratio(figures[APART], figures[ALONE]), 3)
        medians[name] = {subject: round(statistics.median(values), 1) for subject, values in figures.items()}
    worst = min(efficiency, key=lambda name: efficiency[name])
    record = {
        "name": "ddp",
        "unit": "ms",
        "ours": medians[worst][RANKS],
        "peer": medians[worst][ALONE],
        "peer_name": ALONE,
        "efficiency": efficiency[worst],
        "repeats": options.repeats,
        "detail": {
            "efficiency": efficiency,
            "efficiency_of_processes_apart": apart,
            "ranks_against_processes_apart": {name: round(efficiency[name] / apart[name], 3) for name in apart},
            "medians": medians,
            "num_pairs": options.pairs,
            "size_px": options.size_px,
        },
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
