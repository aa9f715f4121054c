"""Who calls: the one place where a call gets its principal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import grpc

from servers.platform.errors import ApiError

_LOOPBACK_PEERS = ("ipv4:127.", "ipv6:%5B::1%5D:", "ipv6:[::1]:", "unix:")


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of what a call creates, and the only one who sees it; ``admin``: may also run the servers."""

    id: str
    admin: bool = False


class Authenticator(Protocol):
    """Turns a call's metadata and peer into a principal, or raises :class:`ApiError`."""

    async def authenticate(self, metadata: Mapping[str, str], peer: str) -> Principal:
        """Return who calls."""


class DevelopmentAuthenticator:
    """Every caller on this host is ``local``, an administrator; nobody else is let in."""

    async def authenticate(self, metadata: Mapping[str, str], peer: str) -> Principal:
        """Return the local principal if ``peer`` is on the loopback."""
        if not peer.startswith(_LOOPBACK_PEERS):
            raise ApiError(
                grpc.StatusCode.UNAUTHENTICATED,
                "NOT_LOOPBACK",
                "development authentication serves callers on the same host only",
            )
        return Principal("local", admin=True)


# By the setting ``authentication``.
AUTHENTICATORS: dict[str, Callable[[], Authenticator]] = {"development": DevelopmentAuthenticator}

current_principal: ContextVar[Principal] = ContextVar("principal")


def principal() -> Principal:
    """The principal of the call being served."""
    return current_principal.get()
