"""Asks hosts that a recipe allows whether a URL is alive. No other host, no private address, each URL once per run.

HEAD, then GET where HEAD is not allowed (405); redirects are not followed, their status is the answer. A time-out, an
unknown name and a failed handshake all are "no status". The connection goes to the very address that was checked, so
a name that resolves differently a moment later cannot lead inside.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from rlkit.evidence.urls import MAX_LENGTH, canonical

__all__ = ["HttpStatus", "Request", "public_addresses"]

Request = Callable[[str, str, str, float], int | None]
"""`(method, url, address, timeout_s) -> status`; raises `OSError` or `HTTPException` where there is none."""
Resolve = Callable[[str, int], Sequence[str]]
PORTS = {"http": 80, "https": 443}


class HttpStatus:
    """URL -> status, None where there is none; a function with a memory."""

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        timeout_s: float = 3.0,
        cache_file: Path | None = None,
        resolve: Resolve | None = None,
        request: Request | None = None,
    ) -> None:
        """`hosts` as in URLs, a port included where it is not the scheme's; `resolve`, `request`: for tests."""
        self.hosts = frozenset(host.lower() for host in hosts)
        self.timeout_s = timeout_s
        self._cache_file = cache_file
        self._resolve = resolve or _addresses
        self._request = request or _status
        self._known: dict[str, int | None] = {}
        self._read = 0

    def __call__(self, url: str) -> int | None:
        """The status; asked for at most once."""
        url = canonical(url).partition("#")[0]
        if url not in self._known:
            self._recall()
        if url not in self._known:
            self._remember(url, self._ask(url))
        return self._known[url]

    def _ask(self, url: str) -> int | None:
        """The network, if `url` is one that may be asked for."""
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS.get(parts.scheme, 0)
        except ValueError:
            return None
        allowed = parts.netloc.lower() in self.hosts  # with user information it is not
        if not allowed or not parts.hostname or not port or len(url) > MAX_LENGTH:
            return None
        try:
            addresses = public_addresses(self._resolve(parts.hostname, port))
            if not addresses:
                return None
            status = self._request("HEAD", url, addresses[0], self.timeout_s)
            return self._request("GET", url, addresses[0], self.timeout_s) if status == 405 else status
        except (OSError, http.client.HTTPException, ValueError):
            return None

    def _recall(self) -> None:
        """What other processes of the run have found since; the first entry of a URL stays."""
        if self._cache_file is None or not self._cache_file.is_file():
            return
        with self._cache_file.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written
                self._read += len(line)
                url, status = json.loads(line)
                self._known.setdefault(url, status)

    def _remember(self, url: str, status: int | None) -> None:
        if self._cache_file is None:
            self._known[url] = status
            return
        self._cache_file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._cache_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, json.dumps([url, status]).encode() + b"\n")  # one write: lines of processes do not mix
        finally:
            os.close(handle)
        self._recall()


def public_addresses(addresses: Sequence[str]) -> list[str]:
    """The addresses, or none of them if any lies in a private, local or reserved range."""
    return list(addresses) if all(_public(address) for address in addresses) else []


def _public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None) or parsed
    return parsed.is_global and inner.is_global and not inner.is_multicast


def _addresses(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _status(method: str, url: str, address: str, timeout_s: float) -> int | None:
    """One request to `address`, under the name that the URL has."""
    parts = urlsplit(url)
    host, port = str(parts.hostname), parts.port or PORTS[parts.scheme]
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    plain = socket.create_connection((address, port), timeout=timeout_s)
    try:
        secure = parts.scheme == "https"
        connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, headers={"User-Agent": "rlkit", "Connection": "close"})
        return connection.getresponse().status
    finally:
        connection.close()
        plain.close()
