"""Requests are small: whoever sends more than the largest form needs is refused before it is stored.

Django's own limits come too late for an ASGI application. It first writes the whole body to a temporary file,
before it knows who sends it, and what is in a multipart form's files is not limited at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Application = Callable[[dict[str, Any], Any, Any], Coroutine[Any, Any, None]]

# The largest is a file of mappings, 1 MB (portal/mapping_import.py); Django itself refuses forms and JSON
# above 2.5 MB.
LARGEST_BYTES = 4_000_000
_SAYS = b"The request is too large.\n"


def limit_requests(application: Application, largest: int = LARGEST_BYTES) -> Application:
    """An ASGI application that answers 413 to a larger body, announced or not."""

    async def limited(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        if _announced(scope.get("headers", ())) > largest:
            await _refuse(send)
            return
        received, answered = 0, False

        async def receive_so_much() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # To the application it is a client that went away, so it does nothing and answers nothing.
            return {"type": "http.disconnect"} if received > largest else message

        async def send_and_remember(message: Any) -> None:
            nonlocal answered
            answered = True
            await send(message)

        await application(scope, receive_so_much, send_and_remember)
        if received > largest and not answered:
            await _refuse(send)

    return limited


def _announced(headers: Any) -> int:
    """``Content-Length``; 0 when there is none (the server itself refuses what is no number)."""
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


async def _refuse(send: Any) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(_SAYS)).encode()),
        # What is still under way is not read.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": _SAYS})
