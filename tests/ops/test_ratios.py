"""KL estimators, clipping on shared tokens and importance weights, worked by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from rlkit.ops.ratios import clipped_gain, importance_weight, kl_estimate


@pytest.mark.parametrize(
    ("d", "k1", "k2", "k3"), [(0.5, -0.5, 0.125, 0.148721), (-0.5, 0.5, 0.125, 0.106531), (0.0, 0.0, 0.0, 0.0)]
)
def test_kl_estimators_match_the_paper_spec(d: float, k1: float, k2: float, k3: float) -> None:
    # d = log reference - log policy; the k3 column is search_p1.md section 6.
    policy, reference = torch.tensor([-1.0]), torch.tensor([-1.0 + d])
    for kind, expected in (("k1", k1), ("k2", k2), ("k3", k3)):
        assert float(kl_estimate(policy, reference, kind)) == pytest.approx(expected, abs=1e-6)  # type: ignore[arg-type]


def test_a_bounded_kl_is_cut_on_both_sides_and_has_no_gradient_beyond() -> None:
    policy = torch.tensor([0.0, 0.0, 0.0], requires_grad=True)
    reference = torch.tensor([0.5, 3.0, -3.0])
    k3 = kl_estimate(policy, reference, "k3", 10.0)
    assert k3.tolist() == pytest.approx([0.148721, 10.0, 2.049787], abs=1e-6)  # e^3 - 4 = 16.09; e^-3 + 2
    k3.sum().backward()
    assert policy.grad is not None and policy.grad[1] == 0.0 and (policy.grad[[0, 2]] != 0).all()
    assert kl_estimate(policy, torch.tensor([12.0, -12.0, 1.0]), "k1", 10.0).tolist() == [-10.0, 10.0, -1.0]


def test_the_mean_of_k1_and_k3_under_the_policy_is_the_kl() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    exact = float((p * (p / q).log()).sum())
    for kind in ("k1", "k3"):
        assert float((p * kl_estimate(p.log(), q.log(), kind)).sum()) == pytest.approx(exact)  # type: ignore[arg-type]


def test_two_sums_carry_the_clipped_objective_of_any_number_of_paths() -> None:
    ratios = torch.tensor([0.5, 0.85, 1.0, 1.15, 3.0], dtype=torch.float64)
    for weights in itertools.product([0.2, 1.0], repeat=3):
        advantages = (1.5, -0.5, -2.0)
        flat = sum(
            w * torch.minimum(ratios * a, ratios.clamp(0.8, 1.28) * a) for w, a in zip(weights, advantages, strict=True)
        )
        c_pos = torch.full_like(ratios, weights[0] * 1.5)
        c_neg = torch.full_like(ratios, -weights[1] * 0.5 - weights[2] * 2.0)
        assert torch.allclose(clipped_gain(ratios, c_pos, c_neg, 0.2, 0.28), flat, atol=1e-14)


def test_dual_clip_bounds_the_loss_of_a_bad_token() -> None:
    gain = clipped_gain(torch.tensor([5.0]), torch.zeros(1), torch.tensor([-1.0]), 0.2, 0.2, dual_clip=3.0)
    assert float(gain) == -3.0


def test_importance_weights_are_capped_or_masked() -> None:
    proximal, behavior = torch.tensor([0.5, 1.0, 4.0]).log(), torch.zeros(3)
    assert importance_weight(proximal, behavior, "truncate", 0.6, 2.0).tolist() == pytest.approx([0.5, 1.0, 2.0])
    assert importance_weight(proximal, behavior, "mask", 0.6, 2.0).tolist() == pytest.approx([0.0, 1.0, 0.0])
    assert importance_weight(proximal, behavior, "none", 0.6, 2.0).tolist() == [1.0, 1.0, 1.0]
