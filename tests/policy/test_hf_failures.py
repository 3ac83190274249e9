"""What goes wrong is an `EngineError` of the request at fault; the engine and the other requests go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from rlkit.errors import EngineError
from tests.policy.exchange import ids, request, sample


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens 0 is below 1"),
        ({"num_shared": 11}, "11 of 10 tokens are shared"),
        ({"token_ids": np.array([5, 999], np.int32), "num_shared": 2}, "token ids outside of 0..379"),
        ({"token_ids": np.array([], np.int32), "num_shared": 0}, "0 of 0 tokens"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(make_engine, changes, message) -> None:
    with pytest.raises(EngineError, match=message):
        sample(make_engine(), replace(request(ids(10)), **changes))


def test_a_failed_draw_fails_its_own_request_only(make_engine) -> None:
    def constraint(asked, sampled):
        return np.array([], np.int64) if asked.sample_index == 1 else None

    engine = make_engine(constraint=constraint)

    async def run():
        requests = [request(ids(10), sample_index=index) for index in range(3)]
        return await asyncio.gather(*map(engine.sample, requests), return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert isinstance(second, EngineError) and "sample 1: the constraint allows no token" in str(second)
    assert len(first.token_ids) == len(third.token_ids) == 6


def test_a_crash_fails_the_requests_in_flight_and_the_engine_goes_on(make_engine) -> None:
    engine = make_engine(constraint=lambda asked, sampled: 1 / 0 if asked.task_id == "bad" else None)
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        sample(engine, request(ids(10), task_id="bad"))
    assert len(sample(engine, request(ids(10)))[0].token_ids) == 6


def test_a_cancelled_request_frees_its_slot(make_engine) -> None:
    engine = make_engine(slots=1)

    async def run():
        endless = asyncio.create_task(engine.sample(request(ids(10), max_tokens=4000)))
        await asyncio.sleep(0.05)
        endless.cancel()
        return await asyncio.wait_for(engine.sample(request(ids(10), task_id="other")), timeout=10)

    assert len(asyncio.run(run()).token_ids) == 6
    assert engine.counts.num_sampled < 2000


def test_a_cancelled_event_loop_leaves_no_slot_taken(make_engine) -> None:
    engine = make_engine(slots=1)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(engine.sample(request(ids(10), max_tokens=4000)), timeout=0.05))
    assert len(sample(engine, request(ids(10)))[0].token_ids) == 6


def test_the_event_loop_runs_on_while_the_model_computes(make_engine) -> None:
    engine, ticks = make_engine(), 0

    async def run():
        nonlocal ticks
        task = asyncio.create_task(engine.sample(request(ids(10), max_tokens=40)))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0)
        return task.result()

    assert len(asyncio.run(run()).token_ids) == 40
    assert ticks > 40
