"""Requests through a Unix socket come from no address: whose they are, the proxy before it says.

Without an address nobody could sign in: attempts are limited per address, and allauth refuses (403) what it
cannot tell apart. Whoever may open the socket is the proxy, so its ``X-Forwarded-For`` is believed.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Application = Callable[[dict[str, Any], Any, Any], Coroutine[Any, Any, None]]

# Nobody's: all who come without a forwarded address share it, and the limits of signing in with it.
UNKNOWN = "0.0.0.0"  # noqa: S104 - no address to listen on


def name_clients(application: Application) -> Application:
    """An ASGI application whose requests always have a client, also through a Unix socket."""

    async def named(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not (scope.get("client") or ("",))[0]:
            scope["client"] = (forwarded_for(scope.get("headers", ())), 0)
        await application(scope, receive, send)

    return named


def forwarded_for(headers: Any) -> str:
    """The address that the proxy before us was asked from: the last one, which it has added itself."""
    lines = [value.decode("latin-1") for name, value in headers if name.lower() == b"x-forwarded-for"]
    last = ",".join(lines).rpartition(",")[2].strip()
    try:
        return str(ipaddress.ip_address(last))
    except ValueError:
        return UNKNOWN
