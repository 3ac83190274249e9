"""The fake engine speaks the protocol: same endings, addresses and versions as a real one."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkit.errors import EngineError
from rlkit.policy.fake import ByteTokenizer, FakeEngine
from tests.policy.exchange import ids, request, sample

PROMPT = ids(4)


@given(st.text())
def test_every_text_survives_the_byte_tokenizer(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_markers_are_one_id_and_can_be_left_out() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("a<|im_end|>b") == [97, 258, 98]
    assert tokenizer.decode([97, 258, 98]) == "a<|im_end|>b"
    assert tokenizer.decode([97, 258, 98], skip_special_tokens=True) == "ab"
    assert len(tokenizer) == 259


@pytest.mark.parametrize(
    ("stop", "max_tokens", "text", "finish"),
    [
        ((), 100, "find <a>x</a>.<|im_end|>", "eos"),
        (("</a>",), 100, "find <a>x</a>", "stop"),
        (("nope",), 100, "find <a>x</a>.<|im_end|>", "eos"),
        (("</a>",), 6, "find <", "length"),
        (("</a>", "f"), 6, "f", "stop"),
    ],
)
def test_a_script_ends_like_a_completion(stop, max_tokens, text, finish) -> None:
    engine = FakeEngine(script=lambda asked: "find <a>x</a>.")
    found = sample(engine, request(PROMPT, stop=stop, max_tokens=max_tokens))[0]
    assert (found.text, found.finish) == (text, finish)
    assert ByteTokenizer().decode(found.token_ids) == text
    assert len(found.behavior_logprobs) == len(found.token_ids) and (found.behavior_logprobs <= 0).all()


def test_the_address_chooses_text_and_logprobs_in_any_order_of_arrival() -> None:
    def engine() -> FakeEngine:
        return FakeEngine(FakeEngine.Config(latency_s=0.02), script=["a", "bb", "ccc"], seed=1)

    requests = [request(PROMPT, sample_index=index, max_tokens=9) for index in range(12)]
    there, back = sample(engine(), *requests), sample(engine(), *reversed(requests))
    for one, two in zip(there, reversed(back), strict=True):
        assert one.text == two.text
        np.testing.assert_array_equal(one.behavior_logprobs, two.behavior_logprobs)
    assert len({found.text for found in there}) == 3


def test_answers_arrive_out_of_order() -> None:
    order: list[int] = []

    async def run() -> None:
        engine = FakeEngine(FakeEngine.Config(latency_s=0.05), script=["x"])

        async def one(index: int) -> None:
            await engine.sample(request(PROMPT, sample_index=index))
            order.append(index)

        await asyncio.gather(*map(one, range(8)))

    asyncio.run(run())
    assert sorted(order) == list(range(8)) != order


def test_a_version_changes_the_draws_and_is_reported() -> None:
    engine = FakeEngine(script=[f"text {i}" for i in range(50)])
    requests = [request(PROMPT, sample_index=index, max_tokens=20) for index in range(5)]
    before = sample(engine, *requests)
    first = engine.load_weights({"a": np.zeros(3)}, version=1)
    assert first != engine.load_weights({"a": np.ones(3)}, version=1)
    after = sample(engine, *requests)
    assert {found.policy_version for found in after} == {engine.version} == {1}
    assert [found.text for found in before] != [found.text for found in after]


def test_it_speaks_through_a_real_tokenizer_too(tokenizer) -> None:
    engine = FakeEngine(script=lambda asked: "<answer>Paris</answer> and so on", tokenizer=tokenizer)
    found = sample(engine, request(PROMPT, stop=("</answer>",), max_tokens=99))[0]
    assert found.finish == "stop" and "</answer>" in found.text
    assert tokenizer.decode(found.token_ids.tolist(), skip_special_tokens=False) == found.text


def test_requests_and_releases_are_noted_and_nonsense_is_refused() -> None:
    engine = FakeEngine(script=["x"])
    sample(engine, request(PROMPT))
    engine.release("t")
    assert [asked.task_id for asked in engine.requests] == engine.released == ["t"]
    with pytest.raises(EngineError, match="max_tokens 0"):
        sample(engine, request(PROMPT, max_tokens=0))


def test_it_imports_no_torch() -> None:
    program = "import sys, rlkit.policy.fake; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
