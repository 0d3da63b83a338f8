"""Tell open pages that something changed: server-sent events, one line each, no data in them.

The page then fetches itself anew, so what is shown comes from one place and passes the same permissions.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import DatabaseError, connection
from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from ocpp_billing import clock
from ocpp_billing.portal.access import person
from ocpp_billing.portal.queries import change_mark

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from django.http import HttpRequest

POLL_S = 2
# Proxies and browsers drop a connection on which nothing is said.
KEEP_ALIVE_S = 20
# Then the browser connects again by itself, and whether it may is checked again.
STREAM_S = 300
# Of one person in one process: every stream asks the database every two seconds, and a window has one.
STREAMS_PER_PERSON = 20
_open_streams: Counter[int] = Counter()


def current_mark(source: str) -> str:
    """What a page shows now, as a short text to compare."""
    return hashlib.sha256(change_mark(source).encode()).hexdigest()[:16]


def draw_live(request: HttpRequest, name: str, context: dict[str, Any]) -> HttpResponse:
    """A live page: all of ``<name>.html``, or for htmx ``<name>_body.html`` with freshness and banners.

    The body is one element ``#live`` that asks for itself when ``changes`` says so; ``context["mark"]`` is
    :func:`current_mark`, taken before anything was read.
    """
    context |= {"body": f"portal/{name}_body.html"}
    live_part_only = request.headers.get("HX-Request") == "true"
    return render(request, "portal/live_part.html" if live_part_only else f"portal/{name}.html", context)


def _look(source: str) -> str:
    """The mark, from a thread of the pool: its connection must not stay open until the next poll."""
    try:
        return current_mark(source)
    finally:
        connection.close()


def _holds(session_key: str | None) -> bool:
    """Whether a session has not ended: by signing out, from elsewhere, or with its account."""
    try:
        return Session.objects.filter(session_key=session_key, expire_date__gt=clock.now()).exists()
    finally:
        connection.close()


async def stream_changes(
    source: str,
    seen: str,
    session_key: str | None,
    *,
    poll_s: float = POLL_S,
    stream_s: float = STREAM_S,
) -> AsyncGenerator[str, None]:
    """Yield an event whenever the mark differs from ``seen``, then from the one sent last.

    Whose session has ended is told nothing more: the stream ends, and asking again leads to sign-in.
    """
    yield "retry: 3000\n\n"
    started_s = spoke_s = time.monotonic()
    while time.monotonic() - started_s < stream_s:
        try:
            mark = await sync_to_async(_look, thread_sensitive=False)(source)
        except DatabaseError:
            mark = seen  # The database is away: nothing to tell until it is back.
        if mark != seen:
            if not await sync_to_async(_holds, thread_sensitive=False)(session_key):
                return
            seen, spoke_s = mark, time.monotonic()
            yield f"id: {mark}\nevent: changed\ndata: \n\n"
        elif time.monotonic() - spoke_s >= KEEP_ALIVE_S:
            spoke_s = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(poll_s)


async def _counted(person_id: int, stream: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """The stream, counted as the person's as long as it is open."""
    _open_streams[person_id] += 1
    try:
        async with aclosing(stream):
            async for line in stream:
                yield line
    finally:
        _open_streams[person_id] -= 1


@require_GET
async def changes(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """The event stream of a page; ``?seen=`` is the mark the page was drawn with.

    429 for whoever has too many open: their pages try again by themselves.
    """
    person_id = person(request).pk
    if _open_streams[person_id] >= STREAMS_PER_PERSON:
        return HttpResponse(status=429, headers={"Retry-After": "10", "Cache-Control": "no-store"})
    seen = request.headers.get("Last-Event-ID") or request.GET.get("seen", "")
    return StreamingHttpResponse(
        _counted(person_id, stream_changes(settings.CONFIG.steve_source, seen, request.session.session_key)),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
