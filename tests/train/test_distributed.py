"""Real gloo ranks against one process that has the whole batch."""

import os
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medssl.model.networks import ProjectionHead, ResNet
from medssl.model.sync_norm import SynchronisedBatchNorm

WORLD_SIZES = (1, 2, 3, 4)
NUM_PAIRS = 12

# What each rank does; one process imports torch and forks all ranks of all worlds.
PROGRAM = """
import os, sys, torch, torch._dynamo  # which DistributedDataParallel imports: here once for all ranks
torch.set_num_threads(1)
from test_distributed import NUM_PAIRS, WORLD_SIZES, half_precision, images, network, projections, uneven
from medssl.model.losses import nt_xent
from medssl.train.distributed import process_group
from medssl.train.optim import lars

def train(ranks, dtype):
    plain = network().to(dtype)
    model = ranks.wrap(plain)
    share = NUM_PAIRS // ranks.world_size
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    optimizer = lars(model, lr=0.1, weight_decay=1e-4)
    found = {"losses": []}
    for _ in range(2):
        view_a, view_b = (view.to(dtype)[mine] for view in images())
        z_a, z_b = model(torch.cat([view_a, view_b])).chunk(2)
        loss = nt_xent(z_a, z_b, temperature=0.2, reduction="paper", group=ranks.group)
        optimizer.zero_grad()
        loss.backward()
        found["losses"].append(loss.detach())
        found.setdefault("gradients", {name: p.grad.clone() for name, p in plain.named_parameters()})
        optimizer.step()
    return found | {"state": plain.state_dict()}

def objective(ranks, **more):
    share = NUM_PAIRS // ranks.world_size
    own = [z[ranks.rank * share :][:share].clone().requires_grad_() for z in projections()]
    loss = nt_xent(*own, reduction="code", group=ranks.group, **more)
    loss.backward()
    return {"loss": loss.detach(), "gradients": torch.stack([z.grad for z in own])}

def finetune(ranks):
    norm, rows, targets, shares = uneven(ranks.world_size)
    model = ranks.wrap(norm)
    mine = shares[ranks.rank]
    squares = (model(rows[mine]) - targets[mine]) ** 2
    (squares.mean() * ranks.weight_of(torch.tensor(len(squares)))).backward()
    return {"gradients": norm[0].weight.grad, "state": norm.state_dict()}

def activations(ranks):
    norm, rows, upstream = half_precision()
    model = ranks.wrap(norm)
    share = NUM_PAIRS // ranks.world_size
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    own = rows[mine].requires_grad_()
    y = model(own)
    y.backward(upstream[mine])
    return {"y": y.detach(), "gradient": own.grad, "state": norm.state_dict()}

def run(world_size, rank, port):
    os.environ.update(WORLD_SIZE=str(world_size), RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=port)
    with process_group() as ranks:
        found = {
            "float64": train(ranks, torch.float64),
            "float32": train(ranks, torch.float32),
            "warm": objective(ranks, temperature=0.1),
            "cold": objective(ranks, temperature=1e-3),
            "bfloat16": objective(ranks, temperature=0.1, product_dtype=torch.bfloat16),
            "finetune": finetune(ranks),
            "activations": activations(ranks),
            "gathered": ranks.gather(torch.full((1, 2), float(rank))),
            "total": ranks.total(torch.tensor([0.1, float(rank)], dtype=torch.float64)),
            "any": (ranks.any(rank == world_size - 1), ranks.any(False)),
        }
    torch.save(found, f"{sys.argv[1]}/{world_size}-{rank}.pt")

failed = 0
for world_size, port in zip(WORLD_SIZES, sys.argv[2:]):
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            run(world_size, rank, port)
            os._exit(0)
        children.append(child)
    failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
sys.exit(failed)
"""


def network() -> nn.Sequential:
    """A small encoder and head, with a norm of every kind and no zero gain that would silence a branch."""
    torch.manual_seed(0)
    encoder = ResNet(depth=18, width=0.125, in_channels=1)
    model = nn.Sequential(encoder, ProjectionHead(encoder.representation_dim, out_dim=8))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    view_a, noise = (torch.rand(NUM_PAIRS, 1, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    return view_a, view_a + 0.5 * noise


def projections() -> tuple[Tensor, Tensor]:
    """Directions that share little, so that no gradient is mere rounding at a low temperature."""
    z_a, z_b = torch.randn(2, NUM_PAIRS, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return z_a, z_b


def uneven(world_size: int) -> tuple[nn.Sequential, Tensor, Tensor, list[slice]]:
    """A layer with a norm, ten rows with targets, and shares of them of different sizes."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    ends = [0, *range(1, world_size), 10]
    shares = [slice(begin, end) for begin, end in pairwise(ends)]
    return model, torch.randn(10, 3).double(), torch.randn(10, 4).double(), shares


def half_precision() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A norm as autocast feeds it, with activations and gradients far from zero mean and unit variance."""
    generator = torch.Generator().manual_seed(4)
    x, upstream = 3 * torch.randn(2, NUM_PAIRS, 5, 4, 4, generator=generator) + 7
    x, upstream = (one.bfloat16().contiguous(memory_format=torch.channels_last) for one in (x, upstream))
    return nn.Sequential(nn.BatchNorm2d(5)), x, upstream


def dense_nt_xent(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of SimCLR from the whole matrix."""
    z = functional.normalize(torch.cat([z_a, z_b]), dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(z)).roll(len(z_a)))


Found = dict[str, Any]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Found]]:
    """What every rank of every world found."""
    folder = tmp_path_factory.mktemp("worlds")
    sockets = [socket.create_server(("localhost", 0)) for _ in WORLD_SIZES]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder), *ports], check=True, env=environment, timeout=120)
    return {
        world_size: [torch.load(folder / f"{world_size}-{rank}.pt", weights_only=True) for rank in range(world_size)]
        for world_size in WORLD_SIZES
    }


@pytest.fixture(scope="module")
def alone() -> Found:
    """Loss, gradients and running statistics of torch's own norms and the whole matrix, in float64."""
    model = network().double()
    z_a, z_b = model(torch.cat(images())).chunk(2)
    loss = dense_nt_xent(z_a, z_b, 0.2)
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "names": list(model.state_dict()),
    }


def vector(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(tensors.items())])


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to what is expected."""
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
def test_ranks_have_the_loss_and_gradients_of_one_process(worlds, alone, world_size, dtype, tolerance) -> None:
    for rank in worlds[world_size]:
        assert rank[dtype]["losses"][0].item() == pytest.approx(alone["loss"].item(), rel=tolerance)
        assert distance(vector(rank[dtype]["gradients"]), vector(alone["gradients"])) < tolerance


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_two_steps_lead_to_the_same_state_under_the_same_names(worlds, alone, world_size) -> None:
    reference = worlds[1][0]["float64"]
    for rank in worlds[world_size]:
        found = rank["float64"]
        assert list(found["state"]) == alone["names"]
        torch.testing.assert_close(found["losses"], reference["losses"], rtol=1e-10, atol=0)
        assert distance(vector(found["state"]), vector(reference["state"])) < 1e-10
        first = worlds[world_size][0]["float64"]["state"]
        assert all(torch.equal(found["state"][name], first[name]) for name in first)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(
    ("which", "temperature", "tolerance"), [("warm", 0.1, 1e-10), ("cold", 1e-3, 1e-10), ("bfloat16", 0.1, 0.02)]
)
def test_every_rank_has_the_loss_of_all_and_its_share_of_the_gradient(
    worlds, world_size, which, temperature, tolerance
) -> None:
    pair = [z.requires_grad_() for z in projections()]
    loss = 2 * dense_nt_xent(*pair, temperature)
    loss.backward()
    expected = torch.stack([z.grad for z in pair])
    for rank in worlds[world_size]:
        assert rank[which]["loss"].item() == pytest.approx(loss.item(), rel=tolerance)
    # Times the number of ranks, over which DistributedDataParallel averages.
    found = torch.cat([rank[which]["gradients"] for rank in worlds[world_size]], dim=1) / world_size
    assert distance(found, expected) < tolerance


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_shares_of_different_sizes_have_the_gradient_and_statistics_of_the_whole(worlds, world_size) -> None:
    model, rows, targets, _ = uneven(world_size)
    ((model(rows) - targets) ** 2).mean().backward()
    for rank in worlds[world_size]:
        torch.testing.assert_close(rank["finetune"]["gradients"], model[0].weight.grad, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(rank["finetune"]["state"], dict(model.state_dict()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_bfloat16_activations_are_normalised_as_in_one_process(worlds, world_size) -> None:
    norm, x, upstream = half_precision()
    norm, x = norm.double(), x.double().requires_grad_()
    y = norm(x)
    y.backward(upstream.double())
    found = {key: torch.cat([rank["activations"][key] for rank in worlds[world_size]]) for key in ("y", "gradient")}
    assert found["y"].dtype == found["gradient"].dtype == torch.bfloat16
    assert distance(found["y"], y.detach()) < 0.004  # half a unit in the last place
    assert distance(found["gradient"], x.grad) < 0.02
    for rank in worlds[world_size]:
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(rank["activations"]["state"][name].to(value), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_share_rows_in_their_order_and_flags(worlds, world_size) -> None:
    for rank in worlds[world_size]:
        assert rank["gathered"].tolist() == [[float(number)] * 2 for number in range(world_size)]
        assert rank["total"].tolist() == pytest.approx([0.1 * world_size, sum(range(world_size))], rel=1e-15)
        assert rank["any"] == (True, False)


def test_a_norm_that_cannot_be_synchronised_is_refused() -> None:
    with pytest.raises(ValueError, match="without running statistics"):
        SynchronisedBatchNorm(nn.BatchNorm1d(3, track_running_stats=False), None)
    with pytest.raises(ValueError, match="give it a momentum"):
        SynchronisedBatchNorm(nn.BatchNorm1d(3, momentum=None), None)


def test_in_evaluation_a_synchronised_norm_needs_no_other_rank() -> None:
    norm = nn.BatchNorm1d(3).eval()
    norm.running_mean.fill_(0.5)
    rows = torch.randn(4, 3)
    assert torch.equal(SynchronisedBatchNorm(norm, None)(rows), norm(rows))
