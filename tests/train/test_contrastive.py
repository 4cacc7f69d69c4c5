"""The training step: micro batches, number formats, several processes."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medssl.config import ConfigError, PretrainRun, validate
from medssl.exit_codes import BadInputError
from medssl.model.networks import ProjectionHead, ResNet
from medssl.train.contrastive import Outcome, cached_gradients, prepare, train_step, whole_gradients
from medssl.train.distributed import Ranks
from medssl.train.optim import lars

ALONE = Ranks(0, 1, torch.device("cpu"))


def make_run(**changes: Any) -> PretrainRun:
    base = {"name": "a", "method": "simclr", "encoder": "e", "num_steps": 7, "batch_size": 12, "image_size_px": 64}
    return PretrainRun.model_validate(base | {"temperature": 0.5} | changes)


def make_views(size_px: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(12, 1, size_px, size_px, generator=generator) for _ in range(2))
    return first, second


class Normless(nn.Sequential):
    """Representation and projection without any batch norm."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(256, 9), nn.Tanh()), nn.Linear(9, 5))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        representation: Tensor = self[0](images)
        return representation, self[1](representation)


def small_networks() -> tuple[ResNet, ProjectionHead]:
    torch.manual_seed(0)
    encoder = ResNet(depth=18, width=1 / 8, in_channels=1)
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # a fresh network's branches are closed, and without a gradient inside
    return encoder, ProjectionHead(encoder.representation_dim, out_dim=8)


def gradients(model: nn.Module, method: Any, run: PretrainRun, views: tuple[Tensor, Tensor]) -> tuple[Outcome, Tensor]:
    model = copy.deepcopy(model)
    outcome = method(model, *views, run, ALONE)
    return outcome, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 6])
def test_without_batch_norm_micro_batches_have_the_gradient_of_the_whole_batch(micro: int) -> None:
    torch.manual_seed(0)
    model, views = Normless(), make_views()
    whole, expected = gradients(model, whole_gradients, make_run(), views)
    cached, found = gradients(model, cached_gradients, make_run(micro_batch_size=micro), views)
    torch.testing.assert_close(cached.loss, whole.loss, rtol=1e-6, atol=0)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
    # What averages the losses of micro batches instead, each with its own negatives alone, is something else.
    pieces = zip(views[0].split(micro), views[1].split(micro), strict=True)
    if micro > 1:
        alone = torch.stack([gradients(model, whole_gradients, make_run(), piece)[1] for piece in pieces])
        assert (alone.mean(dim=0) - expected).abs().max() > 0.05 * expected.abs().max()


def test_batch_norm_in_micro_batches_normalises_by_each_of_them() -> None:
    run, views = make_run(micro_batch_size=4), make_views()
    encoder, head = small_networks()
    model = prepare(encoder, head, run, ALONE).train()
    outcome, found = gradients(model, cached_gradients, run, views)
    reference = copy.deepcopy(model)  # the same mathematics with one graph over everything
    pieces = [reference(torch.cat([a, b]))[1].chunk(2) for a, b in zip(*(v.split(4) for v in views), strict=True)]
    z = functional.normalize(torch.cat([torch.cat(half) for half in zip(*pieces, strict=True)]))
    similar = (z @ z.T / run.temperature).fill_diagonal_(-math.inf)
    loss = 2 * functional.cross_entropy(similar, torch.arange(24).roll(12))
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    torch.testing.assert_close(outcome.loss, loss.detach(), rtol=1e-5, atol=0)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    _, whole = gradients(model, whole_gradients, make_run(), views)
    assert (found - whole).norm() > 1e-2 * whole.norm()


def test_a_step_in_micro_batches_moves_the_running_statistics_once() -> None:
    run, views = make_run(micro_batch_size=4), make_views()
    encoder, head = small_networks()
    model = prepare(encoder, head, run, ALONE).train()
    convolution, norm = encoder.stem[0], encoder.stem[1]
    seen = [convolution(torch.cat([a, b])) for a, b in zip(*(v.split(4) for v in views), strict=True)]
    cached_gradients(model, *views, run, ALONE)
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(dim=0).detach()
    # Pieces count evenly to a twentieth, since the later ones come on top of the earlier.
    torch.testing.assert_close(norm.running_mean, 0.1 * mean, rtol=0.08, atol=1e-4)
    kept = norm.running_var - 0.1 * torch.stack([x.var(dim=(0, 2, 3)) for x in seen]).mean(dim=0).detach()
    torch.testing.assert_close(kept, torch.full_like(kept, 0.9), rtol=0.02, atol=0)
    assert all(n.track_running_stats for n in model.modules() if isinstance(n, nn.BatchNorm2d))


@pytest.mark.parametrize("micro", [0, 4])
def test_bf16_computes_near_float32_and_keeps_weights_statistics_and_loss_in_float32(micro: int) -> None:
    found = {}
    for precision in ("float32", "bf16"):
        run = make_run(precision=precision, micro_batch_size=micro)
        encoder, head = small_networks()
        model = prepare(encoder, head, run, ALONE).train()
        optimizer = lars(model, lr=0.1, weight_decay=0)
        outcome = train_step(model, optimizer, make_views(64), run, ALONE, learning_rate=0.1)
        assert outcome.loss.dtype == outcome.z_a_ND.dtype == torch.float32
        assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
        buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
        assert {t.dtype for t in buffers} == {torch.float32}
        assert all(buffer.abs().max() > 0 for buffer in buffers)  # every parameter got its gradient
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[precision] = (outcome.loss.item(), gradient)
    (loss, gradient), (rough_loss, rough_gradient) = found["float32"], found["bf16"]
    assert rough_loss != loss
    assert rough_loss == pytest.approx(loss, rel=0.05)
    assert functional.cosine_similarity(gradient, rough_gradient, dim=0) > 0.8


def test_compiling_and_micro_batches_keep_the_names_of_the_weights() -> None:
    plain = nn.Sequential(*small_networks()).state_dict().keys()
    encoder, head = small_networks()
    model = prepare(encoder, head, make_run(compile=True, micro_batch_size=4), ALONE)
    assert model.state_dict().keys() == nn.Sequential(encoder, head).state_dict().keys() == plain


def test_a_batch_that_cannot_be_shared_out_is_told() -> None:
    with pytest.raises(BadInputError, match="batch_size 12 must be a multiple of 5 processes"):
        prepare(*small_networks(), make_run(), Ranks(0, 5, torch.device("cpu")))
    with pytest.raises(BadInputError, match="micro_batch_size 4 must be a multiple of 3 processes"):
        prepare(*small_networks(), make_run(micro_batch_size=4), Ranks(0, 3, torch.device("cpu")))
    with pytest.raises(ConfigError, match="batch_size 12 must be a multiple of micro_batch_size 5"):
        validate(PretrainRun, make_run().dump() | {"micro_batch_size": 5}, "study")
    with pytest.raises(ConfigError, match='unknown key "accumulate_steps"'):
        validate(PretrainRun, make_run().dump() | {"accumulate_steps": 4}, "study")


PROGRAM = """
import sys, torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
sys.path.insert(0, sys.argv[2])
from test_contrastive import Normless, cached_gradients, make_run, make_views
from medssl.train.distributed import process_group
torch.set_num_threads(1)
with process_group() as ranks:
    torch.manual_seed(0)
    model = ranks.wrap(Normless())
    mine = slice(ranks.rank * 6, ranks.rank * 6 + 6)
    reduced = []
    def hook(state, bucket):
        reduced.append(1)
        return allreduce_hook(None, bucket)
    model.register_comm_hook(None, hook)
    outcome = cached_gradients(model, *(view[mine] for view in make_views()), make_run(micro_batch_size=4), ranks)
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.save({"loss": outcome.loss, "grads": grads, "reduced": len(reduced)}, f"{sys.argv[1]}/{ranks.rank}.pt")
"""


WITH_NORMS = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_contrastive import cached_gradients, make_run, make_views, prepare, small_networks
from medssl.train.distributed import process_group
torch.set_num_threads(1)
with process_group() as ranks:
    encoder, head = small_networks()
    run = make_run(micro_batch_size=4)
    model = prepare(encoder, head, run, ranks).train()
    mine = torch.arange(12).reshape(3, ranks.world_size, -1)[:, ranks.rank].flatten()  # a part of each micro batch
    cached_gradients(model, *(view[mine] for view in make_views()), run, ranks)
    torch.save(encoder.state_dict(), f"{sys.argv[1]}/{ranks.world_size}-{ranks.rank}.pt")
"""


def test_micro_batches_on_two_ranks_move_the_running_statistics_as_one_process_does(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WITH_NORMS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [str(tmp_path / "program.py"), str(tmp_path), str(Path(__file__).parent)]
    for world_size in ("1", "2"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", world_size]
        subprocess.run([*command, *arguments], check=True, env=environment, timeout=120)
    alone, first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("1-0", "2-0", "2-1"))
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6)


def test_micro_batches_on_two_ranks_have_the_gradient_of_one_process_and_are_averaged_once(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [str(tmp_path / "program.py"), str(tmp_path), str(Path(__file__).parent)]
    subprocess.run([*command, *arguments], check=True, env=environment, timeout=120)
    torch.manual_seed(0)
    whole, expected = gradients(Normless(), whole_gradients, make_run(), make_views())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], whole.loss, rtol=1e-6, atol=0)
        assert (found["grads"] - expected).abs().max() < 2e-6 * expected.abs().max()
        assert found["reduced"] == 1  # buckets, of which this network fills one
