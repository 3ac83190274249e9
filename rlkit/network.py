"""Which hosts this process may reach: rewards are other people's code, and read what a model wrote.

`restrict` is called once, by the process that runs rewards, with the recipe's `network.allow`. From then on Python's
audit events refuse every other connection and look-up, whatever library opens it; loopback is no exception. It keeps
honest code honest: a reward that calls the C library itself is not held by it.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rlkit.errors import RewardError

__all__ = ["is_allowed", "restrict"]

Place = tuple[str, int | None]
_allowed: frozenset[Place] | None = None
_addresses: dict[str, frozenset[str]] = {}
_hooked = False


def restrict(allow: Iterable[str]) -> None:
    """Allow only these `host` or `host:port` from now on; an empty list allows none. Replaces an earlier list."""
    global _allowed, _hooked
    _allowed = frozenset(map(_place, allow))
    _addresses.clear()
    if not _hooked:  # a hook cannot be taken back
        sys.addaudithook(_watch)
        _hooked = True


def is_allowed(host: str, port: int | None) -> bool:
    """True before any `restrict`, and for a name or address of its list; an address of an allowed name counts."""
    if _allowed is None:
        return True
    name = host.lower().rstrip(".")
    for allowed, at in _allowed:
        if at in (None, port) or port is None:
            if name == allowed:
                return True
            if _is_address(name) and name in _resolved(allowed):
                return True
    return False


def _place(text: str) -> Place:
    """`a.com:80` -> (a.com, 80); an IPv6 address with a port is written `[::1]:80`."""
    host, colon, port = text.strip().rpartition(":")
    if not (colon and port.isdigit()) or (":" in host and not host.startswith("[")):
        host, port = text.strip(), ""
    return host.strip("[]").lower().rstrip("."), int(port) if port else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _resolved(allowed: str) -> frozenset[str]:
    """Addresses of an allowed name, looked up once; connections are made to addresses, not to names."""
    if allowed not in _addresses:
        _addresses[allowed] = frozenset()  # the look-up itself raises an audit event, for an allowed name
        try:
            _addresses[allowed] = frozenset(str(found[4][0]) for found in socket.getaddrinfo(allowed, None))
        except OSError:
            del _addresses[allowed]
            return frozenset()
    return _addresses[allowed]


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None or not event.startswith("socket."):
        return
    where = _WATCHED.get(event)
    if where is None:
        return
    address = arguments[where] if where < len(arguments) else None
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if not isinstance(address, tuple) or len(address) < 2:
            return  # a Unix socket, or a socket that is connected already
        host, port = address[0], address[1]
    else:
        host, port = address, None
    if host in (None, "", b""):
        return
    name = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)
    if not is_allowed(name, port if isinstance(port, int) else None):
        place = f"{name}:{port}" if port else name
        raise RewardError(f"network.allow: {place} is not among the hosts that the recipe allows")


_WATCHED: Mapping[str, int] = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
"""Audit event -> position of the address among its arguments."""
