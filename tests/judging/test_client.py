"""The judge's client against a real server on loopback that answers well, slowly, brokenly, and not at all."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlkit.errors import RewardError
from rlkit.judging import Endpoint, Judge, JudgeClient, Question, Verdict
from rlkit.judging.verdict import number
from rlkit.metrics import metric
from tests.judging.judge_server import Behaviour, JudgeServer, drips, hangs_up, in_turn, raw, says

MARK = Judge(name="mark", template="Rate {trajectory}.", parse=lambda values: number(values, "mark"))
Serve = Callable[[Behaviour], JudgeServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[JudgeServer] = []

    def start(behaviour: Behaviour) -> JudgeServer:
        servers.append(JudgeServer(behaviour))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def client(url: str, **settings: Any) -> JudgeClient[float]:
    return JudgeClient(Endpoint(**{"url": url, "model": "m", "backoff_s": 0.01, "timeout_s": 2.0} | settings), MARK)


def question(text: str = "the path", id: str = "q1") -> Question:
    return Question(id=id, trajectory=text, slots={"trajectory": text})


def test_a_good_answer_is_a_verdict_with_its_tokens_and_cost(serve: Serve) -> None:
    server = serve(says({"mark": 0.5}))
    (verdict,) = client(server.url, prompt_price=2.0, completion_price=10.0).ask([question()])
    assert (verdict.value, verdict.error, verdict.requests, verdict.broken) == (0.5, "", 1, 0)
    assert (verdict.prompt_tokens, verdict.completion_tokens) == (100, 10)
    assert verdict.cost == pytest.approx((100 * 2 + 10 * 10) / 1e6)
    assert verdict.measured["judge_failed"] == 0 and verdict.measured["judge_tokens"] == 110
    assert server.paths == ["/v1/chat/completions"]
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["response_format"]) == ("m", 0.0, {"type": "json_object"})
    assert "the path" in body["messages"][0]["content"]


def test_every_counter_of_a_verdict_has_its_own_entry_in_the_dictionary_of_metrics() -> None:
    units = {name: metric(f"reward/tone/{name}/mean").unit for name in Verdict().measured}
    assert units == {
        "judge_failed": "share",
        "judge_cached": "share",
        "judge_requests": "requests",
        "judge_broken": "answers",
        "judge_tokens": "tokens",
        "judge_cost": "currency",
        "judge_s": "s",
    }


def test_a_broken_answer_is_asked_again_once_at_temperature_0(serve: Serve) -> None:
    server = serve(in_turn(says("I would say {mark: high}"), says({"mark": 1})))
    (verdict,) = client(server.url, temperature=0.7).ask([question()])
    assert (verdict.value, verdict.requests, verdict.broken) == (1.0, 2, 1)
    assert [body["temperature"] for body in server.requests] == [0.7, 0.0]
    assert verdict.prompt_tokens == 200  # the broken answer was paid for as well


@pytest.mark.parametrize(
    "behaviour",
    [says("no JSON"), says({"grade": 1}), says({"mark": "NaN"}), raw(b"\xff{"), raw(b"[]"), raw(b'{"choices": []}')],
)
def test_broken_twice_is_a_failure_and_not_a_zero(serve: Serve, behaviour: Behaviour) -> None:
    server = serve(behaviour)
    (verdict,) = client(server.url).ask([question()])
    assert verdict.value is None and verdict.error.startswith("judge mark: broken verdict: ")
    assert (verdict.requests, verdict.broken) == (2, 2)
    with pytest.raises(RewardError, match="judge mark: broken verdict"):
        verdict.settle()
    assert verdict.settle(lambda: 0.25) == 0.25


def test_a_server_error_is_asked_again_after_growing_pauses(serve: Serve) -> None:
    server = serve(in_turn(says("", status=500), says("", status=503), says({"mark": 1})))
    start = time.monotonic()
    (verdict,) = client(server.url, backoff_s=0.1).ask([question()])
    assert (verdict.value, verdict.requests) == (1.0, 3)
    assert time.monotonic() - start >= 0.3  # 0.1 s, then 0.2 s


def test_errors_beyond_the_retries_are_a_failure(serve: Serve) -> None:
    server = serve(says("", status=500))
    (verdict,) = client(server.url, retries=1).ask([question()])
    assert (verdict.error, verdict.requests) == ("judge mark: HTTP status 500", 2)


def test_a_longer_retry_after_is_obeyed_and_not_waited_for_beyond_the_deadline(serve: Serve) -> None:
    server = serve(says("", status=429, Retry_After="30"))
    start = time.monotonic()
    (verdict,) = client(server.url, deadline_s=1.0).ask([question()])
    assert verdict.error == "judge mark: HTTP status 429; no time is left to ask again"
    assert time.monotonic() - start < 5.0


@pytest.mark.parametrize("status", [301, 400, 401, 404])
def test_a_refusal_is_final(serve: Serve, status: int) -> None:
    server = serve(says("", status=status, Location="http://example.com/"))
    (verdict,) = client(server.url).ask([question()])
    assert (verdict.error, verdict.requests) == (f"judge mark: HTTP status {status}", 1)


@pytest.mark.parametrize("behaviour", [says({"mark": 1}, after_s=1.5), drips])
def test_a_slow_answer_ends_at_the_timeout_even_if_bytes_keep_dripping(serve: Serve, behaviour: Behaviour) -> None:
    server = serve(behaviour)
    start = time.monotonic()
    (verdict,) = client(server.url, timeout_s=0.2, retries=1).ask([question()])
    assert verdict.error == "judge mark: no answer within 0.2 s"
    assert verdict.requests == 2
    assert time.monotonic() - start < 2.5  # two answers would take 3 s, two drips 8 s


def test_the_deadline_is_for_all_questions_of_a_call(serve: Serve) -> None:
    server = serve(says({"mark": 1}, after_s=0.6))
    start = time.monotonic()
    verdicts = client(server.url, concurrency=1, deadline_s=1.0).ask([question(str(n)) for n in range(6)])
    assert time.monotonic() - start < 3.0  # one after the other would take 3.6 s
    assert verdicts[0].value == 1.0
    assert all(verdict.value is None for verdict in verdicts[2:])
    assert verdicts[-1].error == "judge mark: deadline of 1 s"


def test_no_server_and_one_that_hangs_up_are_failures(serve: Serve) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (verdict,) = client(f"http://127.0.0.1:{port}/v1").ask([question()])
    assert "ConnectionRefusedError" in verdict.error and verdict.requests == 3
    (verdict,) = client(serve(hangs_up).url, retries=0).ask([question()])
    assert "RemoteDisconnected" in verdict.error


def test_no_more_requests_are_under_way_than_allowed_and_answers_keep_their_order(serve: Serve) -> None:
    def echo(handler: Any, number: int) -> None:
        content = server.requests[number]["messages"][0]["content"]
        says({"mark": int(content.split("path")[1].split()[0])}, after_s=0.25)(handler, number)

    server = serve(echo)
    verdicts = client(server.url, concurrency=3).ask([question(f"path{n}") for n in range(9)])
    assert [verdict.value for verdict in verdicts] == list(range(9))
    assert server.most_at_a_time == 3


def test_equal_questions_are_asked_once(serve: Serve) -> None:
    server = serve(says({"mark": 1}))
    verdicts = client(server.url).ask([question(), question(), question("other")])
    assert [verdict.value for verdict in verdicts] == [1, 1, 1]
    assert len(server.requests) == 2
    assert sum(verdict.requests for verdict in verdicts) == 2  # a twin costs nothing
    assert client(server.url).ask([]) == []


def test_a_trajectory_is_judged_once_for_a_question_and_its_context(serve: Serve, tmp_path: Path) -> None:
    server = serve(in_turn(says({"mark": 1}), says({"mark": 2}), says({"mark": 3}), says({"mark": 4})))
    settings = {"cache": str(tmp_path / "verdicts.sqlite")}
    assert client(server.url, **settings).ask([question()])[0].value == 1
    (kept,) = client(server.url, **settings).ask([question()])
    assert (kept.value, kept.cached, kept.requests, kept.cost) == (1, True, 0, 0.0)
    assert client(server.url, **settings).ask([question(id="q2")])[0].value == 2  # another question
    other = Question(id="q1", trajectory="the path", slots={"trajectory": "the path", "reference": "new"})
    assert client(server.url, **settings).ask([other])[0].value == 3
    assert client(server.url, model="other", **settings).ask([question()])[0].value == 4


def test_failures_are_not_remembered(serve: Serve, tmp_path: Path) -> None:
    server = serve(in_turn(says("?"), says("?"), says({"mark": 1})))
    judge = client(server.url, cache=str(tmp_path / "verdicts.sqlite"))
    assert judge.ask([question()])[0].value is None
    assert judge.ask([question()])[0].value == 1


def test_a_torn_cache_costs_the_cache_and_not_the_verdict(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "verdicts.sqlite").write_bytes(b"not a database, not even a little" * 100)
    judge = client(serve(says({"mark": 1})).url, cache=str(tmp_path / "verdicts.sqlite"))
    assert judge.ask([question()])[0].value == 1
    assert judge.cache_errors == 2  # one read, one write


def test_the_key_comes_from_the_environment_and_is_told_to_nobody(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    server = serve(in_turn(raw(b"your key sk-very-secret is wrong", status=401), says({"mark": 1})))
    judge = client(server.url, key_env="JUDGE_KEY", cache=str(tmp_path / "verdicts.sqlite"))
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    (verdict,) = judge.ask([question()])
    assert verdict.error == "judge mark: the environment variable JUDGE_KEY is not set"
    assert not server.requests
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG)
    refused, good = judge.ask([question()])[0], judge.ask([question()])[0]
    assert refused.error == "judge mark: HTTP status 401" and good.value == 1
    assert server.headers[-1]["Authorization"] == "Bearer sk-very-secret"
    told = f"{refused}{good}{judge.endpoint}{caplog.text}".encode() + (tmp_path / "verdicts.sqlite").read_bytes()
    assert b"sk-very-secret" not in told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "url: 'localhost:8000' is no address such as"),
        ({"url": "http://me:pw@a.com/v1"}, "url: holds a login, a query or a fragment"),
        ({"url": "http://a.com/v1", "key_env": "KEY"}, "would send the key of key_env unencrypted"),
        ({"url": "https://a.com/v1", "key_env": "sk-12"}, "key_env: is no name of a variable such as JUDGE_API_KEY"),
        ({"url": "https://a.com/v1", "timeout_s": 0.0}, "timeout_s: 0.0 is not above 0"),
    ],
)
def test_an_endpoint_that_cannot_work_or_would_leak_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=": ") as caught:
        Endpoint(**{"model": "m"} | settings)
    assert message in str(caught.value) and "pw" not in str(caught.value) and "sk-12" not in str(caught.value)
