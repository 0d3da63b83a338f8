"""Ids below the highest one that StEvE has not shown: which of them are asked for again, and for how long.

Ids are given out in order, but StEvE's database commits in any order, so a lower id may show up after a
higher one has been seen. An id in a new gap is asked for until an answer that comes so long after the gap was
noticed does not show it either. From then on it is a hole like others, and only the reading of the night asks
for it.

Pure. The queue is what is kept of it between cycles: ids, each with the instant at which its gap was noticed;
first what was asked the longest time ago.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

SETTLES_AFTER: Final = timedelta(minutes=15)

Queue = list[tuple[int, str]]
"""Ids, each with when it was noticed as ISO 8601."""


def with_noticed(queue: Iterable[tuple[int, str]], ids: Iterable[int], now: datetime, *, most: int) -> Queue:
    """The queue after ids were noticed, which are asked for first.

    Args:
        queue: as it was.
        ids: not shown yet, in the order in which they are to be asked for.
        now: what time it is.
        most: keep so many, those that were noticed last; the night asks for the others.
    """
    new = dict.fromkeys(ids, now.isoformat())
    longer = [*new.items(), *((number, since) for number, since in queue if number not in new)]
    newest_first = sorted(longer, key=lambda each: datetime.fromisoformat(each[1]), reverse=True)
    kept = {number for number, _ in newest_first[:most]}
    return [each for each in longer if each[0] in kept]


def after_answer(
    queue: Iterable[tuple[int, str]], asked: Collection[int], shown: Collection[int], now: datetime
) -> Queue:
    """The queue after an answer: what it shows is found, and what it should show by now never will be.

    Args:
        queue: as it was.
        asked: ids that StEvE was asked for.
        shown: ids that it showed.
        now: what time it is.
    """
    rest = [(number, since) for number, since in queue if number not in asked]
    again = [
        (number, since)
        for number, since in queue
        if number in asked and number not in shown and not _is_settled(since, now)
    ]
    return [*rest, *again]


def first_ids(queue: Sequence[tuple[int, str]], number: int) -> list[int]:
    """So many ids that are to be asked for next."""
    return [each for each, _ in queue[: max(number, 0)]]


def _is_settled(since: str, now: datetime) -> bool:
    # What was noticed ahead of now was so by a clock that was wrong: once more is enough.
    return not timedelta() <= now - datetime.fromisoformat(since) < SETTLES_AFTER
