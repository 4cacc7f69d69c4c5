import math

import numpy as np
import pytest
import torch

from medssl.model.losses import contrastive_metrics, masked_bce, nt_xent, set_cross_entropy


def loop_nt_xent(z_a, z_b, temperature):
    """Eq. 1 of SimCLR, one view at a time, in float64."""
    views = [[float(v) for v in row] for row in torch.cat([z_a, z_b]).tolist()]
    units = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in views]
    num_pairs = len(z_a)
    total = 0.0
    for i in range(2 * num_pairs):
        scores = {
            k: sum(p * q for p, q in zip(units[i], units[k], strict=True)) / temperature
            for k in range(2 * num_pairs)
            if k != i
        }
        top = max(scores.values())
        log_sum = top + math.log(sum(math.exp(s - top) for s in scores.values()))
        total += log_sum - scores[(i + num_pairs) % (2 * num_pairs)]
    return total / (2 * num_pairs)


def projections(num_pairs, dim, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_pairs, dim, generator=generator, dtype=dtype) for _ in range(2)]


@pytest.mark.parametrize("num_pairs", [1, 2, 7])
@pytest.mark.parametrize("dim", [1, 2, 16])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_loss_equals_the_loop_over_views(num_pairs, dim, temperature):
    z_a, z_b = projections(num_pairs, dim)
    loss = nt_xent(z_a, z_b, temperature=temperature, reduction="paper")
    assert loss.item() == pytest.approx(loop_nt_xent(z_a, z_b, temperature), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("num_pairs", [1, 2, 16, 100])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_loss_is_the_log_of_the_candidates_when_all_projections_coincide(num_pairs, temperature):
    z = torch.ones(num_pairs, 8)
    loss = nt_xent(z, z, temperature=temperature, reduction="paper")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(2 * num_pairs - 1), abs=1e-5)


def test_loss_of_orthogonal_pairs_has_its_closed_form():
    z = torch.eye(6, dtype=torch.float64)
    expected = math.log(math.exp(1 / 0.5) + 10) - 1 / 0.5
    loss = nt_xent(z, z, temperature=0.5, reduction="paper")
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_code_reduction_is_twice_the_paper():
    z_a, z_b = projections(5, 4)
    paper = nt_xent(z_a, z_b, temperature=0.1, reduction="paper")
    code = nt_xent(z_a, z_b, temperature=0.1, reduction="code")
    assert code.item() == 2 * paper.item()


def test_loss_ignores_the_order_of_pairs_the_side_of_views_and_their_length():
    z_a, z_b = projections(9, 4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    loss = nt_xent(z_a, z_b, temperature=0.2, reduction="paper").item()
    for changed in [(z_a[order], z_b[order]), (z_b, z_a), (3 * z_a, 0.5 * z_b)]:
        assert nt_xent(*changed, temperature=0.2, reduction="paper").item() == pytest.approx(loss, rel=1e-12)


def test_loss_depends_on_the_pairing():
    z_a, z_b = projections(9, 4)
    loss = nt_xent(z_a, z_b, temperature=0.2, reduction="paper")
    assert abs(nt_xent(z_a, z_b.roll(1, 0), temperature=0.2, reduction="paper") - loss) > 1e-3


def test_gradients_equal_finite_differences():
    pair = [z.requires_grad_() for z in projections(4, 3)]
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.3, reduction="paper"), pair, atol=1e-6)


def test_tiny_temperature_and_half_precision_stay_finite():
    z_a, z_b = (z.to(torch.bfloat16).requires_grad_() for z in projections(8, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(z_a, z_b, temperature=1e-3, reduction="paper")
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(z_a.grad).all()
    assert loss.item() == pytest.approx(loop_nt_xent(z_a, z_b, 1e-3), rel=1e-4)


@pytest.mark.parametrize("function", [nt_xent, contrastive_metrics])
def test_unpaired_projections_and_cold_temperatures_are_refused(function):
    more = {"reduction": "paper"} if function is nt_xent else {}
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        function(torch.ones(3, 4), torch.ones(2, 4), temperature=0.1, **more)
    with pytest.raises(ValueError, match="temperature is 0"):
        function(torch.ones(3, 4), torch.ones(3, 4), temperature=0, **more)


def test_contrastive_metrics_equal_a_numpy_softmax():
    z_a, z_b = projections(6, 3)
    a, b = (z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True) for z in (z_a, z_b))
    p = np.exp(a @ b.T / 0.5)
    p /= p.sum(axis=1, keepdims=True)
    accuracy, entropy = contrastive_metrics(z_a, z_b, 0.5)
    assert accuracy.item() == pytest.approx((p.argmax(axis=1) == np.arange(6)).mean())
    assert entropy.item() == pytest.approx(-(p * np.log(p)).sum(axis=1).mean(), rel=1e-12)


def test_contrastive_metrics_of_a_solved_and_of_a_collapsed_batch():
    solved, sharp = contrastive_metrics(torch.eye(8), torch.eye(8), 0.01)
    _, flat = contrastive_metrics(torch.ones(8, 2), torch.ones(8, 2), 0.1)
    assert (solved.item(), sharp.item()) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert flat.item() == pytest.approx(math.log(8), abs=1e-5)


def test_masked_bce_is_the_mean_over_known_labels_only():
    logits = torch.tensor([[0.3, -2.0], [1.5, 80.0]], requires_grad=True)
    targets = torch.tensor([[1.0, math.nan], [0.0, math.nan]])
    mask = torch.tensor([[True, False], [True, False]])
    loss = masked_bce(logits, targets, mask)
    loss.backward()
    expected = (math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(1.5))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(logits.grad[:, 1], torch.zeros(2))


def test_masked_bce_without_a_known_label_is_zero_and_keeps_the_graph():
    logits = torch.randn(3, 5, requires_grad=True)
    loss = masked_bce(logits, torch.full((3, 5), math.nan), torch.zeros(3, 5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 5))


def test_masked_bce_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="three equal"):
        masked_bce(torch.zeros(3, 5), torch.zeros(3, 1), torch.ones(3, 5, dtype=torch.bool))


def test_set_cross_entropy_shares_a_tied_truth_evenly_and_ignores_unknown_cases():
    logits = torch.tensor([[0.3, -2.0, 1.0], [1.5, 0.2, -0.4], [9.0, 9.0, 9.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    loss = set_cross_entropy(logits, targets, torch.tensor([True, True, False]))
    loss.backward()
    rows = logits.detach().double().tolist()
    log_p = [[x - math.log(sum(math.exp(y) for y in row)) for x in row] for row in rows]
    assert loss.item() == pytest.approx((-log_p[0][0] - (log_p[1][1] + log_p[1][2]) / 2) / 2, rel=1e-6)
    assert torch.equal(logits.grad[2], torch.zeros(3))
    uniform = set_cross_entropy(torch.zeros(4, 7), torch.eye(7)[:4], torch.ones(4, dtype=torch.bool))
    assert uniform.item() == pytest.approx(math.log(7), rel=1e-6)


def test_set_cross_entropy_without_a_known_case_is_zero_and_keeps_the_graph():
    logits = torch.randn(3, 5, requires_grad=True)
    loss = set_cross_entropy(logits, torch.zeros(3, 5), torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 5))


def test_set_cross_entropy_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"expected \(M, K\)"):
        set_cross_entropy(torch.zeros(3, 5), torch.zeros(3, 1), torch.ones(3, dtype=torch.bool))
