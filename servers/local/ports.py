"""Free loopback ports."""

from __future__ import annotations

import random
import socket

# Below the kernel's ephemeral range, so that no outgoing connection takes one between choice and use.
_FIRST, _LAST = 15000, 32000


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A loopback port that nothing listens on. Random, so that stacks starting together do not meet."""
    choose = random.SystemRandom()
    while True:
        port = choose.randrange(_FIRST, _LAST)
        if is_free(port):
            return port
