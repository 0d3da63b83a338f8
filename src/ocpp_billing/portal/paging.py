"""Pages of a list, by cursor: what the address names, and what stands under the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ocpp_billing.api.errors import ApiError
from ocpp_billing.api.pages import cut_page, decode_cursor

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """One page of a list; ``parts/pager.html`` draws its foot from ``next`` and ``first``."""

    rows: list[Row]
    next: str | None
    first: bool


def read_page(
    request: HttpRequest,
    kind: str,
    read: Callable[[int | None, int], list[Row]],
    row_id: Callable[[Row], int],
    *,
    size: int = 50,
) -> Page[Row]:
    """The page that ``cursor`` names; the first one where that is missing or not one of this list.

    Args:
        request: with the cursor in its address, or in a form that has to be kept.
        kind: of the list; a cursor of another list is none.
        read: rows after the row of that number (None = from the beginning), so many at most.
        row_id: the number of a row.
        size: rows on a page.
    """
    given = request.POST if request.method == "POST" else request.GET
    try:
        after = decode_cursor(kind, given.get("cursor") or None)
    except ApiError:
        after = None
    rows, following = cut_page(read(after, size + 1), size, kind, row_id)
    return Page(rows, following, first=after is None)
