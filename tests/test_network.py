"""Only hosts that a recipe allows can be reached; in a process of its own, because a restriction is for life."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

PROGRAM = """
import socket, sys, threading, urllib.request
from rlkit import network
from rlkit.errors import RewardError

server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
threading.Thread(target=lambda: [server.accept() for _ in range(9)], daemon=True).start()

def reach(host="127.0.0.1"):
    try:
        socket.create_connection((host, port), timeout=5).close()
    except RewardError as error:
        return str(error)
    return "reached"

print(reach())
network.restrict([])
print(reach().replace(str(port), "PORT"))
print(reach("localhost"))
try:
    urllib.request.urlopen("http://example.com/")
except RewardError as error:
    print(error)
network.restrict([f"localhost:{port}"])
print(reach("localhost"), reach())
network.restrict([f"127.0.0.1:{port + 1}"])
print(reach().replace(str(port), "PORT"))
print(network.is_allowed("127.0.0.1", port + 1), network.is_allowed("LOCALHOST.", 80))
left, right = socket.socketpair()
left.sendall(b"x")
print(right.recv(1))
"""


def test_a_restricted_process_reaches_the_hosts_of_the_list_and_no_other() -> None:
    done = subprocess.run([sys.executable, "-c", dedent(PROGRAM)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    refused = "network.allow: {} is not among the hosts that the recipe allows"
    assert done.stdout.splitlines() == [
        "reached",  # nothing is restricted yet
        refused.format("127.0.0.1"),  # the look-up comes before the connection
        refused.format("localhost"),
        refused.format("example.com"),
        "reached reached",  # the address of an allowed name is allowed
        refused.format("127.0.0.1:PORT"),
        "True False",
        "b'x'",
    ]
