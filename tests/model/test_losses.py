import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from medssl.model import losses, similarities
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


def dense_gradients(z_a, z_b, temperature):
    """Loss and gradients for both views from the whole matrix, in float64."""
    pair = [z.detach().double().requires_grad_() for z in (z_a, z_b)]
    z = functional.normalize(torch.cat(pair), dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    loss = functional.cross_entropy(logits, torch.arange(len(z)).roll(len(z_a)))
    return loss.detach(), torch.stack(torch.autograd.grad(loss, pair))


def distance(found, expected):
    """Norm of the difference relative to what is expected."""
    return float((found.double() - expected).norm() / expected.norm())


class Sizes(TorchDispatchMode):
    """Remembers the largest number of values of any tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes() // result.itemsize)
        return result


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
    for num_pairs, temperature in [(4, 0.3), (1, 0.3), (4, 0.01)]:
        pair = [z.requires_grad_() for z in projections(num_pairs, 3)]
        loss = partial(nt_xent, temperature=temperature, reduction="paper")
        assert torch.autograd.gradcheck(loss, pair, atol=1e-6)


@pytest.mark.parametrize("num_pairs", [6, 7, 50])
@pytest.mark.parametrize("temperature", [0.1, 1e-3])
@pytest.mark.parametrize("kept_bytes", [0, 5000, 1 << 20])
def test_many_blocks_kept_or_computed_anew_have_the_gradients_of_the_whole_matrix(
    monkeypatch, num_pairs, temperature, kept_bytes
):
    monkeypatch.setattr(similarities, "CPU_BLOCK_ROWS", 8)
    monkeypatch.setattr(similarities, "KEPT_BYTES", kept_bytes)
    pair = [z.requires_grad_() for z in projections(num_pairs, 5)]
    expected, gradients = dense_gradients(*pair, temperature)
    loss = nt_xent(*pair, temperature=temperature, reduction="code")
    (3 * loss).backward()
    assert loss.item() == pytest.approx(2 * expected.item(), rel=1e-12)
    assert distance(torch.stack([z.grad for z in pair]), 6 * gradients) < 1e-10


@pytest.mark.parametrize(("product_dtype", "tolerance"), [(None, 1e-6), (torch.bfloat16, 2e-3)])
def test_value_and_gradients_of_float32_projections_are_those_of_float64(product_dtype, tolerance):
    z_a, noise = projections(600, 64, dtype=torch.float32)
    pair = [z_a.requires_grad_(), (z_a.detach() + noise).requires_grad_()]
    expected, gradients = dense_gradients(*pair, 0.1)
    loss = nt_xent(*pair, temperature=0.1, reduction="paper", product_dtype=product_dtype)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert distance(torch.stack([z.grad for z in pair]), gradients) < 2 * tolerance


def test_a_solved_batch_keeps_its_tiny_loss_and_gradients():
    """The loss of orthogonal pairs at this temperature is 14 e^-20: lost if 20 is subtracted from its logarithm."""
    z = torch.eye(8).requires_grad_()
    loss = nt_xent(z, z.detach(), temperature=0.05, reduction="paper")
    loss.backward()
    assert loss.item() == pytest.approx(14 * math.exp(-20), rel=1e-4)
    others = z.grad[~torch.eye(8, dtype=torch.bool)]
    # Both views of each other image, in both views' softmax, over 16 views.
    assert others.numpy() == pytest.approx(4 * math.exp(-20) / 0.05 / 16, rel=1e-4)


def test_no_tensor_grows_with_the_square_of_the_batch():
    z_a, z_b = (z.requires_grad_() for z in projections(2000, 4, dtype=torch.float32))
    with Sizes() as made:
        nt_xent(z_a, z_b, temperature=0.1, reduction="paper").backward()
        contrastive_metrics(z_a, z_b, 0.1)
    assert made.largest <= max(similarities.CPU_BLOCK_ROWS**2, losses.METRICS_ROWS * 2000)


@pytest.mark.parametrize("num_views", [2, 24, 100, 770, 5000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_the_upper_triangle_evenly_and_without_cutting_a_pair(num_views, world_size):
    shares = [similarities.own_blocks(num_views, 384, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = np.zeros((num_views, num_views), dtype=int)
    for rows, columns in (block for share in shares for block in share):
        assert rows.start % 2 == 0
        assert rows.stop % 2 == 0
        seen[rows, columns] += 1
        if rows != columns:
            seen[columns, rows] += 1
    assert (seen == 1).all()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


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


@pytest.mark.parametrize("num_pairs", [6, losses.METRICS_ROWS + 3])
def test_contrastive_metrics_equal_a_numpy_softmax(num_pairs):
    z_a, z_b = projections(num_pairs, 3)
    a, b = (z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True) for z in (z_a, z_b))
    p = np.exp(a @ b.T / 0.5)
    p /= p.sum(axis=1, keepdims=True)
    accuracy, entropy = contrastive_metrics(z_a, z_b, 0.5)
    assert accuracy.item() == pytest.approx((p.argmax(axis=1) == np.arange(num_pairs)).mean())
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


def test_an_image_without_any_known_label_changes_neither_the_loss_nor_another_images_gradient():
    known = torch.tensor([[0.3, -2.0], [1.5, 0.7]], requires_grad=True)
    targets, mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[True, False], [True, True]])
    masked_bce(known, targets, mask).backward()
    logits = torch.cat([known.detach(), torch.full((1, 2), 50.0)]).requires_grad_()
    unknown = torch.cat([targets, torch.full((1, 2), math.nan)]), torch.cat([mask, torch.zeros(1, 2, dtype=torch.bool)])
    loss = masked_bce(logits, *unknown)
    loss.backward()
    assert loss.item() == masked_bce(known, targets, mask).item()
    assert torch.equal(logits.grad, torch.cat([known.grad, torch.zeros(1, 2)]))


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
