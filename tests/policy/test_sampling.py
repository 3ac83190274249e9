"""Draws on a vocabulary of four tokens with probabilities 0.1, 0.2, 0.3, 0.4, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkit.errors import EngineError
from rlkit.policy.base import Sampling
from rlkit.policy.sampling import Draw, draw, kept_ids, sampling_state
from rlkit.randomness import Address, uniform

LOGITS = np.log([1.0, 2.0, 3.0, 4.0]).astype(np.float32)


def address(group: int, sibling: int) -> Address:
    return Address(seed=0, version=0, task_id=f"task {group}", sample_index=sibling, turn=0)


@pytest.mark.parametrize(
    ("point", "token"), [(0.0, 0), (0.09, 0), (0.11, 1), (0.29, 1), (0.31, 2), (0.61, 3), (1 - 2**-53, 3)]
)
def test_a_point_falls_into_the_cumulative_distribution(point: float, token: int) -> None:
    # cumulative: 0.1, 0.3, 0.6, 1.0
    drawn = draw(LOGITS, Sampling(), point)
    assert drawn.token_id == token
    assert drawn.kept is None
    assert drawn.logprob == pytest.approx(np.log([0.1, 0.2, 0.3, 0.4][token]), abs=1e-6)


@pytest.mark.parametrize(
    ("sampling", "allowed", "kept", "probabilities"),
    [
        # at temperature 1/2 the weights are squared: 1, 4, 9, 16 of 30
        (Sampling(temperature=0.5), None, None, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        (Sampling(top_k=2), None, [2, 3], [3 / 7, 4 / 7]),
        # 0.4 is too little, 0.4 + 0.3 reaches 0.65
        (Sampling(top_p=0.65), None, [2, 3], [3 / 7, 4 / 7]),
        (Sampling(top_p=0.71), None, [1, 2, 3], [2 / 9, 3 / 9, 4 / 9]),
        # after top-k the weights are 2, 3, 4 of 9: 4/9 is too little for 0.5, 7/9 is enough
        (Sampling(top_k=3, top_p=0.5), None, [2, 3], [3 / 7, 4 / 7]),
        # top-p sees the temperature: 16/30 reaches 0.5 alone
        (Sampling(temperature=0.5, top_p=0.5), None, [3], [1.0]),
        (Sampling(), [3, 0], [0, 3], [1 / 5, 4 / 5]),
        (Sampling(top_k=1), [1, 0], [1], [1.0]),
        (Sampling(top_k=9), None, [0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_truncation_renormalises_over_the_kept_set(sampling, allowed, kept, probabilities) -> None:
    allowed = None if allowed is None else np.array(allowed)
    edges = np.concatenate([[0], np.cumsum(probabilities)])
    for index, probability in enumerate(probabilities):
        drawn = draw(LOGITS, sampling, (edges[index] + edges[index + 1]) / 2, allowed)
        assert drawn.token_id == (index if kept is None else kept[index])
        assert drawn.logprob == pytest.approx(np.log(probability), abs=1e-6)
        assert (drawn.kept is None) if kept is None else drawn.kept.tolist() == kept


def test_ties_keep_the_lower_ids() -> None:
    level = np.zeros(4, np.float32)
    assert kept_ids(level, Sampling(top_k=2)).tolist() == [0, 1]
    assert kept_ids(level, Sampling(top_p=0.5)).tolist() == [0, 1]
    assert kept_ids(np.array([0, 1, 0, 0], np.float32), Sampling(top_k=2)).tolist() == [0, 1]


def test_greedy_takes_the_likeliest_and_speaks_of_temperature_one() -> None:
    drawn = draw(LOGITS, Sampling(temperature=0, top_k=1), 0.0)
    assert (drawn.token_id, drawn.kept) == (3, None)
    assert drawn.logprob == pytest.approx(np.log(0.4), abs=1e-6)
    assert draw(LOGITS, Sampling(temperature=0), 0.0, np.array([0, 2])).token_id == 2
    assert sampling_state(Sampling(temperature=0), [drawn], 4).temperature == 1.0


def test_a_token_of_no_mass_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf], np.float32)
    for point in (0.0, 0.5, 1 - 2**-53):
        assert draw(logits, Sampling(), point).token_id == 1


def test_logits_that_are_no_distribution_are_refused() -> None:
    for row in ([np.nan, 0.0], [-np.inf, -np.inf], [np.inf, 0.0]):
        with pytest.raises(EngineError, match="largest logit"):
            draw(np.array(row, np.float32), Sampling(), 0.5)
    with pytest.raises(EngineError, match="allows no token"):
        draw(LOGITS, Sampling(), 0.5, np.array([], np.int64))


def test_frequencies_follow_the_distribution() -> None:
    counts = np.zeros(4)
    for group in range(4000):
        counts[draw(LOGITS, Sampling(), uniform(address(group, 0), 0)).token_id] += 1
    expected = 4000 * np.array([0.1, 0.2, 0.3, 0.4])
    assert ((counts - expected) ** 2 / expected).sum() < 16.27  # chi-square, 3 degrees of freedom, 0.1 %


def test_no_two_siblings_are_clones_in_ten_thousand_groups() -> None:
    num_groups, num_siblings = 10_000, 8
    keys = {address(group, sibling).key() for group in range(num_groups) for sibling in range(num_siblings)}
    assert len(keys) == num_groups * num_siblings  # so each has a stream of its own

    # And they are independent: on a small vocabulary two siblings agree as often as chance has it,
    # 0.1² + 0.2² + 0.3² + 0.4² = 0.30, with a standard error of 0.0046 over 10,000 pairs.
    agreements = 0
    for group in range(num_groups):
        first, second = (draw(LOGITS, Sampling(), uniform(address(group, sibling), 0)).token_id for sibling in (0, 1))
        agreements += first == second
    assert abs(agreements / num_groups - 0.30) < 4 * 0.0046


def test_a_state_lists_each_kept_set_and_the_whole_vocabulary_where_there_is_none() -> None:
    def drawn(kept: list[int] | None) -> Draw:
        return Draw(token_id=1, logprob=0.0, kept=None if kept is None else np.array(kept, np.int32))

    state = sampling_state(Sampling(temperature=0.7), [drawn([1, 3]), drawn(None), drawn([1])], 4)
    assert state.temperature == 0.7
    assert state.support_offsets.tolist() == [0, 2, 6, 7]
    assert state.support_ids.tolist() == [1, 3, 0, 1, 2, 3, 1]
    assert sampling_state(Sampling(), [drawn(None)], 4).support_ids is None


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
    point=st.floats(0, 1, exclude_max=True),
)
def test_every_draw_is_likely_kept_and_normalised(logits, temperature, top_k, top_p, point) -> None:
    row = np.array(logits, np.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = draw(row, sampling, point)
    kept = np.arange(len(row)) if drawn.kept is None else drawn.kept
    scaled = row.astype(np.float64) / temperature
    assert drawn.token_id in kept
    assert (np.diff(kept) > 0).all()
    assert top_k == 0 or len(kept) <= top_k
    assert row[kept].min() >= np.delete(row, kept).max(initial=-np.inf)  # nothing likelier was cut off
    assert drawn.logprob == pytest.approx(scaled[drawn.token_id] - np.logaddexp.reduce(scaled[kept]), abs=1e-9)
