"""Codes for items: worked statistics, clusters that must be found, and an autoencoder that must not collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlkit.semantic_ids.codes import made_unique, sid_tokens, statistics
from rlkit.semantic_ids.rq_kmeans import kmeans, nearest_code, residuals, rq_kmeans
from rlkit.semantic_ids.rqvae import RqVae, RqVaeSettings, fit_rqvae

CODES = np.array([[0, 1], [0, 1], [0, 2], [3, 2]])


def test_collisions_and_codebook_use_are_counted() -> None:
    found = statistics(CODES, 4)
    assert (found.num_items, found.num_sids, found.num_colliding, found.largest) == (4, 3, 2, 2)
    assert found.collision_rate == 0.5
    assert found.used == (0.5, 0.5)
    # level 1: shares 3/4 and 1/4, entropy .562335; level 2: even halves
    assert found.perplexity == pytest.approx((1.754765, 2.0), abs=1e-6)
    assert "2 items (50.00 %) share one, at most 2" in str(found)


def test_one_more_level_makes_semantic_ids_unique() -> None:
    assert made_unique(CODES).tolist() == [[0, 1, 0], [0, 1, 1], [0, 2, 0], [3, 2, 0]]
    assert statistics(made_unique(CODES), 4).num_colliding == 0


def test_codes_are_written_with_a_letter_per_level() -> None:
    assert sid_tokens(CODES[2:3]) == [("<a_0>", "<b_2>")]


def cloud(seed: int = 0) -> np.ndarray:
    """Four far clusters of four near ones each: two levels of four codes describe it exactly, up to noise."""
    rng = np.random.default_rng(seed)
    square = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    centres = (10 * square[:, None] + square[None]).reshape(-1, 2)
    return (np.repeat(centres, 20, axis=0) + rng.normal(0, 0.01, (320, 2))).astype(np.float32)


def test_residual_clusters_of_a_nested_cloud_are_found() -> None:
    points = cloud()
    codes, books = rq_kmeans(points, levels=2, size=4, seed=1)
    assert len(np.unique(codes[:, 0])) == 4
    for block in range(4):
        assert len(np.unique(codes[80 * block : 80 * (block + 1), 0])) == 1
    found = residuals(points, codes, books)
    assert found[0] == pytest.approx(2 / 202, rel=0.05)  # variance inside of all: 1 + 1 of 100 + 100 + 1 + 1
    assert found[1] < 1e-3
    again, _ = rq_kmeans(points, levels=2, size=4, seed=1)
    assert (again == codes).all()


def test_an_empty_cluster_moves_to_the_point_that_is_served_worst() -> None:
    points = np.array([[0.0], [0.0], [0.0], [9.0]], np.float32)
    centres = kmeans(points, 2, np.random.default_rng(0))
    assert sorted(centres.ravel().tolist()) == [0.0, 9.0]
    code, distance = nearest_code(points, centres)
    assert distance.tolist() == [0.0] * 4 and len(set(code.tolist())) == 2
    assert len(kmeans(np.zeros((3, 2), np.float32), 3, np.random.default_rng(0))) == 3  # all points equal


def test_fewer_items_than_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="size: 8 codes for 3 items"):
        rq_kmeans(np.zeros((3, 2), np.float32), levels=1, size=8)
    with pytest.raises(ValueError, match="size: 8 codes for 3 items"):
        fit_rqvae(np.zeros((3, 2), np.float32), RqVaeSettings(size=8))
    with pytest.raises(ValueError, match="levels: 0 is below 1"):
        RqVaeSettings(levels=0)


SMALL = RqVaeSettings(levels=2, size=4, hidden=(16,), dim=4, epochs=25, batch=64, lr=1e-2)


def test_the_autoencoder_learns_uses_its_codes_and_repeats_with_its_seed() -> None:
    before = torch.random.get_rng_state()
    codes, errors = fit_rqvae(cloud(), SMALL, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert errors[-1] < 0.2 * errors[0]
    assert statistics(codes, 4).used == (1.0, 1.0)
    assert (fit_rqvae(cloud(), SMALL, seed=0)[0] == codes).all()


def test_quantisation_passes_gradients_straight_through() -> None:
    torch.manual_seed(0)
    model = RqVae(2, SMALL)
    model.books.data.normal_()
    x = torch.randn(8, 2)
    z = model.encoder(x).detach().requires_grad_()
    codes, found, loss = model.quantise(z)
    assert torch.allclose(found, model.books[0][codes[:, 0]] + model.books[1][codes[:, 1]])
    loss.backward()
    # d/dz of the commitment alone: β · 2 (r_l) / B summed over levels, where r_l is what is left after level l
    first = z - model.books[0][codes[:, 0]]
    second = first - model.books[1][codes[:, 1]]
    assert torch.allclose(z.grad, 0.25 * 2 * (first + second).detach() / 8, atol=1e-6)
