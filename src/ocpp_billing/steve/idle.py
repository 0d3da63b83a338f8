"""What a cycle in which nothing has happened may ask StEvE: at most four calls, whatever there is to ask.

Pure. What makes StEvE work hard rests many times as long as it took. Each thing to ask has a deadline, and
what is most overdue is asked first, so that no call is ever crowded out by the others; among equals the
order in which they are named decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.steve.progress import PacedCall

# Calls of a cycle in which nothing has happened, and of one that crosses a wide hole in the numbering.
MOST_CALLS: Final = 4
MOST_CALLS_AT_A_HOLE: Final = 6
# Reading by id leaves so many of them to what makes StEvE read its whole history.
MOST_CALLS_BY_ID: Final = 2
# What makes StEvE work hard is asked again no sooner than so many times its own duration.
REST_FACTOR: Final = 20
NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Wish:
    """One call that a cycle would like to make.

    Attributes:
        name: what is asked.
        last: when it was asked last; None = never.
        every: how often it should be asked; zero = in every cycle.
    """

    name: str
    last: datetime | None
    every: timedelta = timedelta()

    @property
    def deadline(self) -> datetime:
        """When it should be asked again."""
        return NEVER if self.last is None else self.last + self.every


def is_made_up_for(last: PacedCall | None, now: datetime) -> bool:
    """Whether StEvE's time that something took has been made up for by rest.

    Args:
        last: when it was asked (``at``, as ISO 8601) and how long that took (``took_s``); None = never.
        now: what time it is. A time ahead of it was noted by a clock that was wrong, and counts as over.
    """
    if last is None:
        return True
    rest = timedelta(seconds=REST_FACTOR * last["took_s"])
    return not timedelta() <= now - datetime.fromisoformat(last["at"]) < rest


def plan_calls(wishes: Sequence[Wish], calls: int) -> list[str]:
    """Which of the wishes this cycle grants: those whose deadlines are the earliest, in the order given.

    Args:
        wishes: the most important ones first.
        calls: how many calls may be made; none below 1.

    Returns:
        Their names, in the order of the wishes.
    """
    ranked = sorted(range(len(wishes)), key=lambda place: (wishes[place].deadline, place))
    granted = sorted(ranked[: max(calls, 0)])
    return [wishes[place].name for place in granted]


def portion(ids: Sequence[int], after: int, size: int) -> list[int]:
    """The next ids in a round through all of them: those above ``after``, then from the lowest on.

    Args:
        ids: ascending.
        after: the last id of the portion before.
        size: how many at most.
    """
    above = [number for number in ids if number > after]
    return [*above, *ids[: len(ids) - len(above)]][: max(size, 0)]
