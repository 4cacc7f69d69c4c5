"""NT-Xent, forward and backward, on one thread: ours with float32 and with bfloat16 products against lightly's.

    .venv/bin/python -m benchmarks.nt_xent

A figure is the time of the loss of 4,096 pairs and of its gradient for both views' projections. Memory is the peak of
a process of its own above what it held before the first call. Errors are against the whole matrix in float64. One JSON
line comes last.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import alternate, extra_mb, ratio, report
from medssl.model.losses import nt_xent

TEMPERATURE = 0.1
DIM = 128
NOISE = 1.0  # between the two views of a pair, in units of the projections' own spread
OURS, HALF, LIGHTLY, DENSE = "ours", "ours, bfloat16 products", "lightly", "cross-entropy of the whole matrix"

Loss = Callable[[Tensor, Tensor], Tensor]


def lightly(z_a_ND: Tensor, z_b_ND: Tensor) -> Tensor:
    """The peer's loss, without its memory bank."""
    from lightly.loss import NTXentLoss

    loss: Tensor = NTXentLoss(temperature=TEMPERATURE)(z_a_ND, z_b_ND)
    return loss


def dense(z_a_ND: Tensor, z_b_ND: Tensor) -> Tensor:
    """The definition as a cross-entropy over the matrix of all similarities."""
    z_MD = torch.cat([functional.normalize(z_a_ND), functional.normalize(z_b_ND)])
    logits_MM = (z_MD @ z_MD.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return functional.cross_entropy(logits_MM, torch.arange(len(z_MD)).roll(len(z_a_ND)))


LOSSES: dict[str, Loss] = {
    OURS: partial(nt_xent, temperature=TEMPERATURE, reduction="paper"),
    HALF: partial(nt_xent, temperature=TEMPERATURE, reduction="paper", product_dtype=torch.bfloat16),
    LIGHTLY: lightly,
    DENSE: dense,
}


def projections(num_pairs: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random directions and noisy copies of them."""
    generator = torch.Generator().manual_seed(0)
    z_a_ND, noise_ND = (torch.randn(num_pairs, DIM, generator=generator) for _ in range(2))
    z_b_ND = z_a_ND + NOISE * noise_ND
    return z_a_ND.to(dtype).requires_grad_(), z_b_ND.to(dtype).requires_grad_()


def loss_and_gradient(loss: Loss, pair: tuple[Tensor, Tensor]) -> tuple[float, Tensor]:
    """Value, and the gradients for both views in one tensor."""
    value = loss(*pair)
    return value.item(), torch.cat(torch.autograd.grad(value, pair))


def milliseconds(loss: Loss, pair: tuple[Tensor, Tensor]) -> float:
    """Of one forward and backward pass."""
    begin = time.perf_counter()
    loss_and_gradient(loss, pair)
    return (time.perf_counter() - begin) * 1e3


def memory_mb(name: str, num_pairs: int) -> float:
    """Extra peak memory of a pass; in a fresh process."""
    torch.set_num_threads(1)
    loss_and_gradient(LOSSES[name], projections(8))  # libraries are loaded on first use
    pair = projections(num_pairs)
    return extra_mb(partial(loss_and_gradient, LOSSES[name], pair))


def errors(num_pairs: int) -> dict[str, dict[str, float]]:
    """Relative errors of each subject's value and gradient (norms) against float64."""
    value, gradient = loss_and_gradient(dense, projections(num_pairs, torch.float64))
    found = {}
    for name, loss in LOSSES.items():
        own_value, own_gradient = loss_and_gradient(loss, projections(num_pairs))
        error = torch.linalg.vector_norm(own_gradient - gradient) / torch.linalg.vector_norm(gradient)
        found[name] = {"value": float(f"{abs(own_value / value - 1):.1e}"), "gradient": float(f"{error:.1e}")}
    return found


def main() -> None:
    """Compare values, memory and times; print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="512 pairs, 3 repeats")
    options = parser.parse_args()
    num_pairs, repeats = (512, 3) if options.quick else (4096, options.repeats)
    torch.set_num_threads(1)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        memory = {name: round(pool.submit(memory_mb, name, num_pairs).result()) for name in LOSSES}
    found = errors(num_pairs)
    for name in LOSSES:
        print(f"{name}: {memory[name]} MB, errors {found[name]}")
    pair = projections(num_pairs)
    subjects = {name: partial(milliseconds, loss, pair) for name, loss in LOSSES.items()}
    alternate(subjects, repeats=1)
    figures = alternate(subjects, repeats=repeats)
    detail = {
        "num_pairs": num_pairs,
        "ratio_bfloat16": round(ratio(figures[HALF], figures[LIGHTLY]), 2),
        "fastest_ms": {name: round(min(values), 1) for name, values in figures.items()},
        "ratio_dense": round(statistics.median(figures[DENSE]) / statistics.median(figures[OURS]), 2),
        "extra_mb": memory,
        "relative_errors": found,
    }
    report(figures, name="nt_xent", unit="ms", ours=OURS, peer=LIGHTLY, detail=detail)


if __name__ == "__main__":
    main()
