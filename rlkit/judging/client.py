"""Asks a judge over HTTP: any endpoint that speaks OpenAI's chat completions, hosted or on this machine.

    questions ─> cache? ─> at most `concurrency` requests ─> JSON ─> parser ─> Verdict for each, in order
                             └─ again after a pause: no answer, timeouts, 408, 429, 5xx; once more after broken JSON

Nothing here raises for what a network or a model does: a question that got no verdict says why, and its reward decides
(`Verdict.settle`) whether that is a failed reward or a deterministic scorer's turn. Redirects and proxies are not
followed, so a request goes to the endpoint's host or nowhere. The key is read from the environment when it is sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from rlkit.errors import RewardError
from rlkit.judging.cache import Cache
from rlkit.judging.prompt import Judge, Question
from rlkit.judging.verdict import find_object
from rlkit.network import is_allowed
from rlkit.settings import above, at_least

__all__ = ["Endpoint", "JudgeClient", "Verdict", "shared"]

V = TypeVar("V")
MAX_ANSWER_BYTES = 1 << 20
MAX_PAUSE_S = 20.0
AGAIN = (408, 429)
"""Status codes besides 5xx after which the same request may succeed."""
REMINDER = "\n\nAnswer with one JSON object of the form above and nothing else."
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a judge is served and how patiently it is asked; the setting of a judged reward."""

    url: str
    """Base of the API, e.g. `https://api.example.com/v1`; `/chat/completions` is appended. Its host must stand in the
    recipe's `network.allow`."""
    model: str
    """Name of the model there."""
    key_env: str = ""
    """Name of the environment variable that holds the API key; empty: none is sent."""
    temperature: float = 0.0
    """Of the first request; after broken JSON it is asked at 0."""
    max_tokens: int = 512
    """Cap on the judge's answer, in tokens."""
    json_mode: bool = True
    """Ask for `response_format: json_object`; false for servers that refuse it."""
    concurrency: int = 8
    """Requests under way at a time, per reward process."""
    timeout_s: float = 20.0
    """Seconds for one request, from connecting to the last byte."""
    deadline_s: float = 60.0
    """Seconds for all questions of one call; keep it below the reward's own `deadline_s`, which ends the process."""
    retries: int = 2
    """Further requests after no answer or one that says to come again."""
    backoff_s: float = 0.5
    """Pause before the first retry; doubles each time, to at most 20 s. A `Retry-After` that is longer counts."""
    cache: str = ""
    """File of verdicts (SQLite), shared by workers and runs; empty: none is kept."""
    prompt_price: float = 0.0
    """Of a million prompt tokens, in any currency."""
    completion_price: float = 0.0
    """Of a million completion tokens."""

    def __post_init__(self) -> None:
        above(self, 0, "timeout_s", "deadline_s")
        at_least(self, 0, "temperature", "retries", "backoff_s", "prompt_price", "completion_price")
        at_least(self, 1, "max_tokens", "concurrency")
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError(f"url: {self.url!r} is no address such as 'http://localhost:8000/v1'")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("url: holds a login, a query or a fragment; name the key's variable in key_env")
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*|", self.key_env):
            raise ValueError(
                "key_env: is no name of a variable such as JUDGE_API_KEY; the key itself has no place in a recipe"
            )
        if self.key_env and parts.scheme == "http" and host not in LOOPBACK:
            raise ValueError(f"url: '{self.url}' would send the key of key_env unencrypted; use https")

    @property
    def host(self) -> str:
        """Name or address of the server."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Its port."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Generic[V]):
    """What became of one question."""

    value: V | None = None
    """What the judge's parser made of the answer; None exactly where `error` says why."""
    error: str = ""
    """Why there is none, e.g. `judge path: deadline of 60 s`."""
    cached: bool = False
    """Remembered, so nothing was sent."""
    requests: int = 0
    """HTTP requests that were sent for it."""
    broken: int = 0
    """Answers whose JSON could not be read."""
    prompt_tokens: int = 0
    """As the server counted them, all requests together; 0 if it does not."""
    completion_tokens: int = 0
    """As the server counted them."""
    cost: float = 0.0
    """Of these tokens at the endpoint's prices."""
    seconds: float = 0.0
    """From the first request to the verdict, pauses included."""

    def settle(self, fallback: Callable[[], V] | None = None) -> V:
        """The value; where there is none that of `fallback`, or a `RewardError`: a status, never a 0."""
        if self.value is not None:
            return self.value
        if fallback is None:
            raise RewardError(self.error)
        return fallback()

    @property
    def measured(self) -> dict[str, float]:
        """Counters for `Score.measured`; logged as `reward/<name>/judge_failed/mean` and so on."""
        return {
            "judge_failed": float(self.value is None),
            "judge_cached": float(self.cached),
            "judge_requests": float(self.requests),
            "judge_broken": float(self.broken),
            "judge_tokens": float(self.prompt_tokens + self.completion_tokens),
            "judge_cost": self.cost,
            "judge_s": self.seconds,
        }


class JudgeClient(Generic[V]):
    """One judge at one endpoint. Safe to use from several threads."""

    def __init__(self, endpoint: Endpoint, judge: Judge[V]) -> None:
        self.endpoint, self.judge = endpoint, judge
        self._cache = Cache(endpoint.cache) if endpoint.cache else None
        about = [judge.name, judge.template, endpoint.url, endpoint.model, endpoint.temperature]
        self._fingerprint = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

    @property
    def cache_errors(self) -> int:
        """Reads and writes of the cache that failed."""
        return self._cache.errors if self._cache else 0

    def ask(self, questions: Sequence[Question]) -> list[Verdict[V]]:
        """A verdict for each question, in order, within `deadline_s`; equal questions are asked once."""
        end = time.monotonic() + self.endpoint.deadline_s
        different = {self._key(question): question for question in questions}
        pool = ThreadPoolExecutor(min(self.endpoint.concurrency, len(different) or 1), thread_name_prefix="judge")
        asked: dict[Any, Future[Verdict[V]]] = {
            key: pool.submit(self._verdict, question, key, end) for key, question in different.items()
        }
        wait(asked.values(), timeout=max(end - time.monotonic(), 0) + 0.5)  # each ends by itself, but for slow look-ups
        pool.shutdown(wait=False, cancel_futures=True)
        late = self._failed(Verdict(), f"deadline of {self.endpoint.deadline_s:g} s")
        found = {key: future.result() if _is_over(future) else late for key, future in asked.items()}
        first = dict.fromkeys(different, True)
        verdicts = []
        for question in questions:
            key = self._key(question)
            verdict = found[key]
            if not first[key]:  # the twin was paid for once
                verdict = Verdict(value=verdict.value, error=verdict.error, cached=verdict.value is not None)
            first[key] = False
            verdicts.append(verdict)
        return verdicts

    def _key(self, question: Question) -> tuple[str, str, str]:
        return f"{self._fingerprint}{question.context_hash[:16]}", question.id, question.trajectory_hash

    def _verdict(self, question: Question, key: tuple[str, str, str], end: float) -> Verdict[V]:
        kept = self._cache.get(key) if self._cache else None
        if kept is not None:
            try:
                return Verdict(value=self.judge.parse(find_object(kept)), cached=True)
            except (ValueError, TypeError, KeyError):
                pass  # kept by an older parser: ask again
        start = time.monotonic()
        try:
            verdict, answer = self._ask(self.judge.prompt(question), end)
        except Exception as error:  # a template or parser of a plug-in may fail in any way; it is this question's
            verdict, answer = self._failed(Verdict(), f"{type(error).__name__}: {error}"), ""
        if verdict.value is not None and self._cache:
            self._cache.put(key, answer)
        prices = self.endpoint.prompt_price, self.endpoint.completion_price
        cost = (verdict.prompt_tokens * prices[0] + verdict.completion_tokens * prices[1]) / 1e6
        return replace(verdict, cost=cost, seconds=time.monotonic() - start)

    def _ask(self, prompt: str, end: float) -> tuple[Verdict[V], str]:
        """Send until there is a verdict, a reason to stop, or no time left."""
        endpoint, tries = self.endpoint, 0
        state: Verdict[V] = Verdict()
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return self._failed(state, f"deadline of {endpoint.deadline_s:g} s"), ""
            state = replace(state, requests=state.requests + 1)
            try:
                answer = self._send(prompt, min(left, endpoint.timeout_s), again=state.broken > 0)
            except _Refused as refused:
                if not refused.again or tries >= endpoint.retries:
                    return self._failed(state, str(refused)), ""
                pause = max(min(endpoint.backoff_s * 2**tries, MAX_PAUSE_S), refused.pause_s)
                tries += 1
                if time.monotonic() + pause >= end:
                    return self._failed(state, f"{refused}; no time is left to ask again"), ""
                time.sleep(pause)
                continue
            try:
                state = _count(state, answer)
                text = _text(answer)
                return replace(state, value=self.judge.parse(find_object(text))), text
            except (ValueError, TypeError, KeyError) as error:
                state = replace(state, broken=state.broken + 1)
                if state.broken > 1:
                    return self._failed(state, f"broken verdict: {error}"), ""

    def _failed(self, state: Verdict[V], why: str) -> Verdict[V]:
        return replace(state, value=None, error=" ".join(f"judge {self.judge.name}: {why}".split())[:300])

    def _send(self, prompt: str, timeout_s: float, *, again: bool) -> Mapping[str, Any]:
        """One request; raises `_Refused` for everything but a JSON object under status 200."""
        endpoint = self.endpoint
        key = os.environ.get(endpoint.key_env, "") if endpoint.key_env else ""
        if endpoint.key_env and not key.strip():
            raise _Refused(f"the environment variable {endpoint.key_env} is not set")
        if not is_allowed(endpoint.host, endpoint.port):
            raise _Refused(f"network.allow: {endpoint.host}:{endpoint.port} is not among the recipe's hosts")
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [{"role": "user", "content": prompt + REMINDER if again else prompt}],
            "temperature": 0.0 if again else endpoint.temperature,
            "max_tokens": endpoint.max_tokens,
        }
        if endpoint.json_mode:
            body["response_format"] = {"type": "json_object"}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key.strip()}"
        try:
            status, pause_s, data = _post(endpoint, json.dumps(body).encode(), headers, timeout_s)
        except RewardError as error:  # of rlkit.network
            raise _Refused(str(error)) from None
        except TimeoutError:
            raise _Refused(f"no answer within {timeout_s:.3g} s", again=True) from None
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            raise _Refused(f"{type(error).__name__}: {error}", again=True) from None
        if status != 200:
            raise _Refused(f"HTTP status {status}", again=status in AGAIN or status >= 500, pause_s=pause_s)
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        return answer if isinstance(answer, dict) else {}  # counted as a broken verdict


@cache
def shared(endpoint: Endpoint, judge: Judge[V]) -> JudgeClient[V]:
    """One client per process for equal settings, so that a reward function can ask for it at every call."""
    return JudgeClient(endpoint, judge)


class _Refused(Exception):
    """One request without an answer. Its text never holds what was sent or received: a server may echo the key."""

    def __init__(self, why: str, *, again: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(why)
        self.again, self.pause_s = again, pause_s


def _is_over(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled()


def _post(endpoint: Endpoint, body: bytes, headers: Mapping[str, str], timeout_s: float) -> tuple[int, float, bytes]:
    """Status, seconds of `Retry-After` and body. Raises `TimeoutError` however slowly the bytes drip."""
    parts = urlsplit(endpoint.url)
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = make(endpoint.host, endpoint.port, timeout=timeout_s)
    end, cut = time.monotonic() + timeout_s, threading.Event()
    watch: threading.Timer | None = None
    try:
        connection.connect()
        watch = threading.Timer(max(end - time.monotonic(), 0.001), _cut, (connection.sock, cut))
        watch.daemon = True
        watch.start()
        connection.request("POST", f"{parts.path.rstrip('/')}/chat/completions", body, dict(headers))
        response = connection.getresponse()
        data = response.read(MAX_ANSWER_BYTES)
        after = response.getheader("Retry-After") or ""
        if cut.is_set():
            raise TimeoutError
        return response.status, float(after) if after.isdecimal() else 0.0, data
    except (OSError, http.client.HTTPException) as error:
        if cut.is_set():
            raise TimeoutError from error
        raise
    finally:
        if watch is not None:
            watch.cancel()
        connection.close()


def _cut(sock: socket.socket, cut: threading.Event) -> None:
    """A socket's own timeout is for one read; this one is for all of them."""
    cut.set()
    with contextlib.suppress(OSError):  # it may be over already
        sock.shutdown(socket.SHUT_RDWR)


def _text(answer: Mapping[str, Any]) -> str:
    """What the model said. Raises `ValueError` where a server's answer has another form."""
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("the server's answer holds no message") from None
    if not isinstance(text, str):
        raise ValueError("the server's message has no text")
    return text


def _count(state: Verdict[V], answer: Mapping[str, Any]) -> Verdict[V]:
    usage = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}

    def tokens(name: str) -> int:
        value = counts.get(name)
        return value if isinstance(value, int) and value > 0 else 0

    return replace(
        state,
        prompt_tokens=state.prompt_tokens + tokens("prompt_tokens"),
        completion_tokens=state.completion_tokens + tokens("completion_tokens"),
    )
