"""Cursor pages, and lists as CSV files."""

import base64
import binascii
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import TypeVar

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db import connection
from django.http import HttpRequest, StreamingHttpResponse

from ocpp_billing.api.errors import ApiError
from ocpp_billing.api.schemas import HIGHEST_ID

Row = TypeVar("Row")

LINES_PER_CHUNK = 1_000


def encode_cursor(kind: str, row_id: int) -> str:
    """A cursor after a row; opaque, so that what is in it can change."""
    return base64.urlsafe_b64encode(f"{kind}:{row_id}".encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str | None) -> int | None:
    """The row that a cursor stands after; None for the first page.

    Raises:
        ApiError: 422 when it is not a cursor of this list.
    """
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
        of, _, number = text.partition(":")
        row_id = int(number) if number.isascii() and number.isdigit() else -1
    except (binascii.Error, UnicodeError, ValueError):
        of, row_id = "", -1
    if of != kind or not 0 <= row_id <= HIGHEST_ID:
        raise ApiError(
            422, "invalid", "The cursor is not one of this list: take 'next' of a page, or begin without."
        )
    return row_id


def cut_page(
    rows: list[Row], limit: int, kind: str, row_id: Callable[[Row], int]
) -> tuple[list[Row], str | None]:
    """The page and the cursor of the next one, from one row more than fits."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], encode_cursor(kind, row_id(rows[limit - 1]))


def wants_csv(request: HttpRequest, chosen: str | None) -> bool:
    """Whether a file is asked for, by ``?format=`` or else by ``Accept``."""
    if chosen is not None:
        return chosen == "csv"
    return request.get_preferred_type(["application/json", "text/csv"]) == "text/csv"


def csv_file(request: HttpRequest, name: str, lines: Iterator[str]) -> StreamingHttpResponse:
    """A file that is sent while it is read from the database: flat memory, however long it is."""
    body = _in_threads(lines) if isinstance(request, ASGIRequest) else lines
    return StreamingHttpResponse(
        body,
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


async def _in_threads(lines: Iterator[str]) -> AsyncIterator[str]:
    def read() -> str:
        try:
            return "".join(islice(lines, LINES_PER_CHUNK))
        finally:
            connection.close()  # of a thread of the pool, which may never come back to it

    while chunk := await sync_to_async(read, thread_sensitive=False)():
        yield chunk


# What an operation that also gives a file says in the OpenAPI.
CSV_TOO = {"responses": {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}}
