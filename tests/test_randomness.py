"""Draws of tasks and users: random where asked for, the same for everyone who names the same seed."""

from __future__ import annotations

from rlkit.randomness import drawn


def test_items_are_the_first_or_drawn_at_random_and_alike_for_everyone() -> None:
    items = list("abcde")
    assert drawn(items, 2, None) == ["a", "b"]
    assert drawn(items, None, 0) == drawn(items, 5, 0) == drawn(items, 9, 0) == items
    pairs = {tuple(drawn(items, 2, seed)) for seed in range(200)}
    assert len(pairs) == 10  # every pair, none twice, in their order
    assert all(first < second for first, second in pairs)
    assert drawn(items, 2, 3) == drawn(items, 2, 3)
