import math

import numpy as np
import pytest
import torch
from torch import nn

from medssl.model.bit import BiT
from medssl.train.optim import (
    LARS,
    lars,
    scaled_learning_rate,
    sgd_nesterov,
    split_parameters,
    warmup_cosine,
)


def numpy_lars(w, gradients, rates, *, momentum, weight_decay, excluded):
    v = np.zeros_like(w)
    for g, lr in zip(gradients, rates, strict=True):
        trust = 1.0
        if not excluded:
            g = g + weight_decay * w
            w_norm, g_norm = math.sqrt((w**2).sum()), math.sqrt((g**2).sum())
            if w_norm > 0 and g_norm > 0:
                trust = 0.001 * w_norm / g_norm
        v = momentum * v + lr * trust * g
        w = w - v
    return w


CASES = {
    "ordinary": (lambda rng: rng.normal(size=(3, 4)), 1.0, False),
    "zero weights": (lambda rng: np.zeros((3, 4)), 1.0, False),
    "zero weights and gradients": (lambda rng: np.zeros(5), 0.0, False),
    "zero gradients": (lambda rng: rng.normal(size=5), 0.0, False),
    "excluded": (lambda rng: rng.normal(size=7), 1.0, True),
}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES)
def test_lars_follows_the_float64_reference_under_a_changing_rate(case, weight_decay):
    make_weight, gradient_scale, excluded = CASES[case]
    rng = np.random.default_rng(0)
    start = make_weight(rng)
    gradients = [gradient_scale * rng.normal(size=start.shape) for _ in range(6)]
    rates = [0.0, 0.3, 0.6, 0.5, 0.2, 0.1]
    expected = numpy_lars(start, gradients, rates, momentum=0.9, weight_decay=weight_decay, excluded=excluded)

    parameter = nn.Parameter(torch.tensor(start))
    optimizer = LARS([{"params": [parameter], "excluded": excluded}], lr=9.0, weight_decay=weight_decay)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-15)


def test_lars_step_does_not_depend_on_the_scale_of_the_gradient():
    weights = []
    for scale in (1.0, 1e4):
        parameter = nn.Parameter(torch.arange(1.0, 5.0, dtype=torch.float64))
        parameter.grad = scale * torch.tensor([1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
        LARS([parameter], lr=0.3, weight_decay=0.0).step()
        weights.append(parameter.detach())
    torch.testing.assert_close(*weights, rtol=1e-12, atol=0)


def test_lars_resumes_from_its_state_exactly():
    def steps(optimizer, parameter, numbers):
        for number in numbers:
            parameter.grad = torch.sin(torch.arange(4.0) + number)
            optimizer.step()

    whole = nn.Parameter(torch.ones(4))
    steps(LARS([whole], lr=0.3, weight_decay=1e-4), whole, range(5))
    part = nn.Parameter(torch.ones(4))
    first = LARS([part], lr=0.3, weight_decay=1e-4)
    steps(first, part, range(2))
    second = LARS([part], lr=0.3, weight_decay=1e-4)
    second.load_state_dict(first.state_dict())
    steps(second, part, range(2, 5))
    assert torch.equal(whole, part)


def test_lars_leaves_parameters_without_gradient_and_returns_the_closure_value():
    parameter = nn.Parameter(torch.ones(2))
    assert LARS([parameter], lr=0.3, weight_decay=0.1).step(lambda: 1.5) == 1.5
    assert torch.equal(parameter, torch.ones(2))


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -1e-6}])
def test_lars_refuses_impossible_settings(bad):
    with pytest.raises(ValueError, match="expected none negative"):
        LARS([nn.Parameter(torch.ones(1))], **({"lr": 0.1, "weight_decay": 0.0} | bad))


class Misnamed(nn.Module):
    """Names that lie: only the types tell what is a bias and what a batch norm."""

    def __init__(self):
        super().__init__()
        self.bn_bias = nn.Linear(3, 4)
        self.dense = nn.BatchNorm1d(4)
        self.tied = self.bn_bias
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_parameters_are_split_by_type_once_each_and_without_frozen_ones():
    module = Misnamed()
    linear, norm = module.bn_bias, module.dense
    regularised, excluded = split_parameters(module, exclude_biases=True)
    assert [id(p) for p in regularised] == [id(linear.weight)]
    assert [id(p) for p in excluded] == [id(linear.bias), id(norm.weight), id(norm.bias)]
    regularised, excluded = split_parameters(module, exclude_biases=False)
    assert [id(p) for p in regularised] == [id(linear.weight), id(linear.bias)]
    assert [id(p) for p in excluded] == [id(norm.weight), id(norm.bias)]


def test_group_norms_count_as_norms_those_of_bit_too():
    with torch.device("meta"):
        encoder = BiT(depth=50, width=1)
    regularised, excluded = split_parameters(encoder, exclude_biases=False)
    assert {p.ndim for p in regularised} == {4}
    assert len(regularised) == 3 * (3 + 4 + 6 + 3) + 4 + 1  # units, projections, stem
    assert len(excluded) == 2 * (3 * (3 + 4 + 6 + 3) + 1)


def test_lars_over_a_module_excludes_norms_and_biases():
    groups = lars(Misnamed(), lr=0.3, weight_decay=1e-6).param_groups
    assert [(len(group["params"]), group["excluded"]) for group in groups] == [(1, False), (3, True)]


def test_sgd_follows_nesterov_with_decay_on_all_but_batch_norms():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    starts = [p.detach().numpy().copy() for p in module.parameters()]
    optimizer = sgd_nesterov(module, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 0.3)
        optimizer.step()
    for start, parameter, decay in zip(starts, module.parameters(), (0.5, 0.5, 0, 0), strict=True):
        w, v = start, np.zeros_like(start)
        for _ in range(3):
            g = 0.3 + decay * w
            v = 0.9 * v + g
            w = w - 0.1 * (g + 0.9 * v)
        np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-12)


def test_learning_rates_scale_with_the_batch_as_in_simclr():
    assert scaled_learning_rate(0.3, 512, "linear") == 0.6
    assert scaled_learning_rate(0.075, 4096, "sqrt") == scaled_learning_rate(0.3, 4096, "linear") == 4.8
    assert scaled_learning_rate(0.1, 128, "none") == 0.1


def test_warmup_cosine_at_its_corners():
    def rate(step, warmup_steps=10, total_steps=110):
        return warmup_cosine(step, peak=2.0, warmup_steps=warmup_steps, total_steps=total_steps)

    assert [rate(0), rate(5), rate(10)] == [0.0, 1.0, 2.0]
    assert rate(60) == pytest.approx(1.0)
    assert rate(35) == pytest.approx(1 + math.sqrt(0.5))
    assert rate(109) == pytest.approx(2 * math.sin(math.pi / 200) ** 2)
    assert [rate(110), rate(10**6)] == [0.0, 0.0]
    assert rate(0, warmup_steps=0) == 2.0
    assert [rate(0, 10, 10), rate(9, 10, 10), rate(10, 10, 10)] == [0.0, 1.8, 0.0]
    assert rate(0, 0, 0) == 0.0


@pytest.mark.parametrize(("step", "warmup", "total"), [(-1, 0, 5), (0, 6, 5), (0, -1, 5)])
def test_warmup_cosine_refuses_impossible_schedules(step, warmup, total):
    with pytest.raises(ValueError, match="0 <= warmup_steps <= total_steps"):
        warmup_cosine(step, peak=1.0, warmup_steps=warmup, total_steps=total)
