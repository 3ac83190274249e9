"""The planner's arithmetic, each number worked by hand, and what its two simulations do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rlkit.errors import RlkitError
from rlkit.forecast.advice import Workload, best, forecast, forecasts
from rlkit.forecast.hardware import Device, Efficiency, Fleet, parse_fleet
from rlkit.forecast.roofline import (
    ModelSize,
    adapter_parameters,
    decode_step_s,
    forward_flops,
    gather_s,
    learner_bytes,
    prefill_s,
    reduce_s,
    send_s,
    train_s,
    worker_bytes,
)
from rlkit.forecast.simulation import decode, lengths, overlap

# 1000 parameters, of which embedding and head are the same 10 x 20; 2 layers of width 10, 4 numbers of keys and values
MODEL = ModelSize(parameters=1000, layers=2, hidden=10, kv_width=4, vocabulary=20)
EXACT = Efficiency(bandwidth=1, decode_overhead_s=0, prefill=1, training=1, link=1, collective_s=0)
DEVICE = Device(name="toy", flops=1e6, bandwidth=1e4, memory=1e5, node_link=100, far_link=10, efficiency=EXACT)


def test_tied_weights_are_taken_from_the_trunk_once_and_untied_twice() -> None:
    assert (MODEL.head, MODEL.trunk) == (200, 800)
    assert dataclasses.replace(MODEL, tied=False).trunk == 600


def test_flops_of_a_forward_pass() -> None:
    # trunk 2·800·3 = 4800, head 2·200·1 = 400, attention 4·5·10·2·3 = 1200
    assert forward_flops(MODEL, tokens=3, scored=1, context=5) == 6400


def test_decoding_takes_the_longer_of_memory_and_arithmetic() -> None:
    # memory: 2·(1000 + 1·5·2·4) = 2080 bytes at 1e4/s; arithmetic: 1600 + 400 + 400 FLOP at 1e6/s
    assert decode_step_s(MODEL, DEVICE, 1, 5) == pytest.approx(0.208)
    # 200 sequences without context: 2000 bytes = 0.2 s, but 200·2000 FLOP = 0.4 s
    assert decode_step_s(MODEL, DEVICE, 200, 0) == pytest.approx(0.4)
    # on two devices half of that, and 2 all-reduces in each of 2 layers: 200·10·2 bytes, 2·1/2 of them at 100/s
    assert decode_step_s(MODEL, DEVICE, 200, 0, devices=2) == pytest.approx(0.2 + 4 * 40)


def test_what_no_data_sheet_says_slows_decoding_down() -> None:
    slow = dataclasses.replace(DEVICE, efficiency=dataclasses.replace(EXACT, bandwidth=0.5, decode_overhead_s=0.1))
    assert decode_step_s(MODEL, slow, 1, 5) == pytest.approx(0.208 / 0.5 + 0.1)
    late = dataclasses.replace(DEVICE, node_link=1e9, efficiency=dataclasses.replace(EXACT, collective_s=0.01))
    assert decode_step_s(MODEL, late, 1, 5, devices=2) == pytest.approx(0.104 + 4 * 0.01)


def test_prefill_scores_nothing() -> None:
    assert prefill_s(MODEL, DEVICE, tokens=10, context=0) == pytest.approx(16000 / 1e6)


def test_training_is_three_forwards_and_the_optimizer() -> None:
    # 3·6400 FLOP at 1e6/s; AdamW 28·1000 bytes at 1e4/s
    assert train_s(MODEL, DEVICE, 3, 1, 5) == pytest.approx(0.0192 + 2.8)
    assert train_s(MODEL, DEVICE, 3, 1, 5, recompute=True, updates=2) == pytest.approx(0.0256 + 5.6)


def test_adapters_train_without_gradients_of_the_frozen_weights() -> None:
    # a layer of 400 parameters: 2·100 of queries and output, 2·10·2 of keys and values, 160 = 3·10·(16/3) of MLP;
    # rank 3: 3·2·(2·20 + 2·12 + 3·(10 + 16/3)) = 660
    adapters = adapter_parameters(MODEL, 3)
    assert adapters == pytest.approx(660)
    # 2·6400 FLOP instead of 3·6400, and AdamW moves 28·660 bytes
    assert train_s(MODEL, DEVICE, 3, 1, 5, adapters=adapters) == pytest.approx(0.0128 + 28 * 660 / 1e4)
    held = learner_bytes(
        MODEL, ranks=4, sharing="fsdp2", row_tokens=0, logit_chunk=0, dtype_bytes=2, recompute=False, references=1,
        adapters=adapters,
    )  # fmt: skip
    assert held == pytest.approx((2 * 1000 + 4 * 4 * 660) / 4)  # the frozen model is its own reference
    found = forecast(
        dataclasses.replace(WORK, adapters=500), Fleet(device=DEVICE, count=1, per_node=1), ranks=1, workers=1,
        placement="colocated",
    )  # fmt: skip
    assert found.sync_s == pytest.approx(2 * 500 / 1e4)


def test_links() -> None:
    assert send_s(1000, 100) == 10
    assert reduce_s(1000, 4, 100) == pytest.approx(15)  # 2 · 3/4 · 1000 / 100
    assert reduce_s(1000, 1, 100) == 0
    assert gather_s(1000, 4, 100) == pytest.approx(7.5)  # 3/4 · 1000 / 100
    fleet = Fleet(device=DEVICE, count=16, per_node=8)
    assert (fleet.link(8), fleet.link(9)) == (100, 10)


def test_memory_of_ranks_and_workers() -> None:
    def rank(sharing: str, ranks: int = 4, references: int = 0) -> float:
        return learner_bytes(
            MODEL, ranks=ranks, sharing=sharing, row_tokens=0, logit_chunk=0, dtype_bytes=2, recompute=False,
            references=references,
        )  # fmt: skip

    # 4000 bytes each of weights, gradients and two moments
    assert [rank(kind) for kind in ("ddp", "zero1", "zero2", "fsdp2")] == [16000, 10000, 7000, 4000]
    assert rank("ddp", references=1) == 20000
    # a row of 10 tokens: 10·(2·17·10·2 + 2·10·2) = 7200; recomputed: 10·(17·10·2 + 40) = 3800
    for recompute, row in ((False, 7200), (True, 3800)):
        held = learner_bytes(
            MODEL, ranks=1, sharing="single", row_tokens=10, logit_chunk=1, dtype_bytes=2, recompute=recompute
        )
        assert held == 16000 + row + 2 * 20 * 4
    assert worker_bytes(MODEL, cached_tokens=100, dtype_bytes=2) == 2 * (1000 + 100 * 8)


def test_lengths_have_the_mean_the_tail_and_the_cap_they_are_asked_for() -> None:
    drawn = lengths(2000, mean=100, spread=0.5, cap=1e9)
    assert drawn.mean() == pytest.approx(100, rel=0.01) and drawn.std() == pytest.approx(50, rel=0.05)
    assert lengths(2000, mean=100, spread=0.5, cap=150).max() == 150
    assert (lengths(8, mean=100, spread=0, cap=1e9) == 100).all()
    assert (lengths(8, mean=9, spread=1, cap=99) == lengths(8, mean=9, spread=1, cap=99)).all()


def test_a_slot_is_refilled_as_soon_as_it_is_free() -> None:
    # two slots, a token a second: 2 and 5 start; at 2 the third (4 tokens) starts and ends at 6
    found = decode([2, 5, 4], slots=2, prompt=0, step_s=lambda batch, context: 1.0)
    assert found.finished_s == (2, 5, 6) and found.seconds == 6 and found.tokens == 11


def test_a_step_of_decoding_costs_what_its_batch_and_context_cost() -> None:
    # both run for 2 tokens at 2 s (batch) each, then one for 3 tokens at 1 s; each admission 0.5 s
    found = decode([2, 5], slots=2, prompt=0, step_s=lambda batch, context: batch, admit_s=0.5)
    assert found.seconds == 2 * 0.5 + 2 * 2 + 3 * 1
    # contexts at the middle of each stretch: prompt 10 + 1, then 10 + 2 + 1.5
    seen: list[float] = []
    decode([2, 5], slots=2, prompt=10, step_s=lambda batch, context: seen.append(context) or 1.0)  # type: ignore[func-returns-value]
    assert seen == [11, 13.5]


def test_without_staleness_sampling_and_learning_take_turns() -> None:
    # 4 groups of 3 s in 2 slots: 6 s; learning 2 s, sync 1 s
    found = overlap([3.0], slots=2, groups_per_step=4, learn_s=2, sync_s=1, max_staleness=0)
    assert found.step_s == pytest.approx(9) and found.staleness == {0: 1.0}
    assert found.learner_busy == pytest.approx(2 / 9)


def test_with_staleness_the_slower_side_sets_the_pace() -> None:
    # enough slots: 4 groups in 3 s, the learner's 5 s + 1 s of sync are the step
    found = overlap([3.0], slots=8, groups_per_step=4, learn_s=5, sync_s=1, max_staleness=2)
    assert found.step_s == pytest.approx(6, rel=0.01) and max(found.staleness) <= 2
    # sampling is slower: 2 slots make 4 groups in 6 s, during which the learner's 2 s are hidden
    slow = overlap([3.0], slots=2, groups_per_step=4, learn_s=2, sync_s=0, max_staleness=2)
    assert slow.step_s == pytest.approx(6, rel=0.01)
    assert sum(slow.staleness.values()) == pytest.approx(1)


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_no_group_is_older_than_the_bound(bound: int) -> None:
    rng = np.random.default_rng(0)
    times = rng.lognormal(1, 1, 64)
    found = overlap(times, slots=16, groups_per_step=8, learn_s=2, sync_s=0.5, max_staleness=bound)
    assert max(found.staleness) <= bound


WORK = Workload(model=MODEL, groups=4, group_size=2, prompt=10, completion=5, spread=0, slots=8, sharing="ddp")


def test_a_tree_of_a_prompt_and_its_completions_is_counted_once() -> None:
    assert WORK.tokens == 4 * 10 + 8 * 5
    assert dataclasses.replace(WORK, shares_prefix=False).tokens == 8 * 15
    assert WORK.context == 12.5


def test_a_colocated_step_is_the_sum_of_its_parts() -> None:
    fleet = Fleet(device=DEVICE, count=1, per_node=1)
    found = forecast(WORK, fleet, ranks=1, workers=1, placement="colocated")
    # 5 tokens for 8 sequences, memory 2·(1000 + 8·12.5·8) = 3600 bytes a token; prefill 5 tokens of the prompt each
    sampling = 5 * 0.36 + 8 * (2 * 800 * 5 + 4 * 12.5 * 10 * 2 * 5) / 1e6
    assert found.rollout_s == pytest.approx(sampling)
    assert found.train_s == pytest.approx(3 * forward_flops(MODEL, 80, 40, 12.5) / 1e6 + 2.8)
    assert found.sync_s == pytest.approx(2000 / 1e4)
    shared = forecast(
        dataclasses.replace(WORK, sharing="fsdp2"), Fleet(device=DEVICE, count=2, per_node=2), ranks=2, workers=2,
        placement="colocated",
    )  # fmt: skip
    assert shared.sync_s == pytest.approx(2000 / 1e4 + 1000 / 100)  # the other half comes over the link first
    assert found.step_s == pytest.approx(found.rollout_s + found.train_s + found.sync_s)
    # a rank: 16000 + a row; worker: 2·(1000 + (8·5 + 4·10)·8)
    assert found.worker_bytes == 2 * (1000 + 80 * 8)


def test_the_best_split_is_the_fastest_that_fits() -> None:
    fleet = Fleet(device=dataclasses.replace(DEVICE, memory=1e9), count=4, per_node=4)
    found = list(forecasts(WORK, fleet))
    assert [(one.placement, one.ranks, one.workers) for one in found] == [
        ("colocated", 4, 4), ("disaggregated", 1, 3), ("disaggregated", 2, 2), ("disaggregated", 3, 1),
    ]  # fmt: skip
    chosen = best(found)
    assert chosen is not None and chosen.step_s == min(one.step_s for one in found)
    small = Fleet(device=dataclasses.replace(DEVICE, memory=1e3), count=4, per_node=4)
    assert best(list(forecasts(WORK, small))) is None
    beside = found[0]  # rank and worker on one device
    assert beside.needed == beside.learner_bytes + beside.worker_bytes
    assert found[1].needed == max(found[1].learner_bytes, found[1].worker_bytes)


def test_overlapping_is_faster_than_taking_turns_on_the_same_split() -> None:
    fleet = Fleet(device=dataclasses.replace(DEVICE, memory=1e9), count=4, per_node=4)
    turns, beside = (
        forecast(dataclasses.replace(WORK, max_staleness=bound), fleet, ranks=2, workers=2, placement="disaggregated")
        for bound in (0, 2)
    )
    assert beside.step_s < turns.step_s and max(beside.staleness) in (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xH1000", "--cluster: unknown device 'H1000'; did you mean 'H100'?"),
        ("H100", "--cluster: 'H100' is not COUNTxDEVICE or NODESxCOUNTxDEVICE, for example 8xH100"),
        ("0xH100", "--cluster: '0xH100' has no device"),
    ],
)
def test_a_fleet_that_is_not_known_is_refused(text: str, message: str) -> None:
    with pytest.raises(RlkitError) as caught:
        parse_fleet(text)
    assert str(caught.value) == message


def test_fleets_are_read_with_and_without_nodes() -> None:
    assert (parse_fleet("16xh100").per_node, parse_fleet("16xh100").count) == (8, 16)
    four = parse_fleet("4x4xA100")
    assert (four.per_node, four.count, four.device.name) == (4, 16, "A100")
