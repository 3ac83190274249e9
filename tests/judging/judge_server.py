"""A real HTTP server on loopback that behaves as it is told, well or badly, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Handler = BaseHTTPRequestHandler
Behaviour = Callable[[Handler, int], None]
"""Answers the request with this number, counted from 0."""


def says(text: Any, *, status: int = 200, after_s: float = 0.0, **headers: str) -> Behaviour:
    """A chat completion with this text; anything but text is written as JSON."""

    def answer(handler: Handler, _: int) -> None:
        time.sleep(after_s)
        content = text if isinstance(text, str) else json.dumps(text)
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        send(handler, {"choices": [{"message": {"content": content}}], "usage": usage}, status=status, **headers)

    return answer


def raw(body: bytes, status: int = 200) -> Behaviour:
    """This body, whatever it is."""

    def answer(handler: Handler, _: int) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drips(handler: Handler, _: int) -> None:
    """One byte at a time, each well within a socket's timeout."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(200):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.02)


def hangs_up(handler: Handler, _: int) -> None:
    """Closes the connection without a word."""
    handler.close_connection = True


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The first request gets the first behaviour; the last one stays."""
    return lambda handler, number: behaviours[min(number, len(behaviours) - 1)](handler, number)


def send(handler: Handler, value: Any, *, status: int = 200, **headers: str) -> None:
    body = json.dumps(value).encode()
    handler.send_response(status)
    for name, text in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), text)
    handler.end_headers()
    handler.wfile.write(body)


@dataclass
class JudgeServer:
    """Listens from construction to `close`."""

    behaviour: Behaviour
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies, in order of arrival."""
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_a_time: int = 0
    """Requests that were waiting for an answer, at most."""

    def __post_init__(self) -> None:
        lock, running = threading.Lock(), [0]
        served = self

        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    running[0] += 1
                    served.most_at_a_time = max(served.most_at_a_time, running[0])
                    number = len(served.requests)
                    served.requests.append(body)
                    served.headers.append(dict(self.headers))
                    served.paths.append(self.path)
                self.under_way = True
                try:
                    served.behaviour(self, number)
                finally:
                    self.over()

            def end_headers(self) -> None:
                self.over()  # before a byte is out: with its answer in hand the client may ask again at once
                super().end_headers()

            def over(self) -> None:
                with lock:
                    running[0] -= self.under_way
                self.under_way = False

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
