"""A window in pieces, so that neither StEvE nor Lago nor we hold more of it than a piece at a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A report of StEvE reads its whole history however short it is: pieces are as long as their rows allow.
LONGEST: Final = timedelta(days=7)
# A site of ten thousand chargers ends a hundred thousand sessions a day.
MOST_ROWS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Piece:
    """From ``begin``, inclusive, to ``end``, exclusive."""

    begin: datetime
    end: datetime


def cut(begin: datetime, end: datetime, rows_by_hour: Mapping[datetime, int]) -> Iterator[Piece]:
    """Cut a window at full hours, so that no piece is longer than a week or has many more rows than it may.

    Pure. One hour is never cut.

    Args:
        begin: of the window, inclusive.
        end: of the window, exclusive, after ``begin``.
        rows_by_hour: how many rows the ledger has in each hour, by its beginning; hours may be missing.
    """
    rows = 0
    for hour in sorted(hour for hour in rows_by_hour if hour < end):
        while hour - begin > LONGEST:
            yield Piece(begin, begin + LONGEST)
            begin, rows = begin + LONGEST, 0
        if begin < hour and rows and rows + rows_by_hour[hour] > MOST_ROWS:
            yield Piece(begin, hour)
            begin, rows = hour, 0
        rows += rows_by_hour[hour]
    while end - begin > LONGEST:
        yield Piece(begin, begin + LONGEST)
        begin += LONGEST
    yield Piece(begin, end)
