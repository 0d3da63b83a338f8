"""How often an event got no clear answer: to tell one that Lago cannot digest from a Lago that is ill. Pure.

What happened to others decides. An event is to blame when it met an error of the server by itself again and
again, with other events taken in between; where none is taken, Lago is ill, and nobody is to blame.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

# An event that got no clear answer so often is why its batch is taken apart, or is tried by itself.
OFTEN = 3
# An event is to blame when so many tries in a row, by itself, met a server error, and Lago took other events
# between any two of them.
TRIES_ALONE = 5
# They count no sooner than so long after one another, and not when a proxy says that Lago is away.
COUNTED_EVERY = timedelta(minutes=15)
AWAY = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class Failures:
    """What an event has met so far.

    Attributes:
        failures: how often it was sent without a clear answer.
        alone: server errors in a row that it met by itself, with others taken between any two of them.
        alone_at: when it met the last that counted.
    """

    failures: int = 0
    alone: int = 0
    alone_at: datetime | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Any] | None) -> Self:
        """As an earlier attempt wrote it down (:meth:`as_answer`)."""
        before = answer or {}
        at = before.get("alone_at")
        return cls(
            before.get("failures", 0),
            before.get("alone", 0),
            None if at is None else datetime.fromisoformat(at),
        )

    def as_answer(self) -> dict[str, Any]:
        """As it is kept beside Lago's last words."""
        at = None if self.alone_at is None else self.alone_at.isoformat()
        return {"failures": self.failures, "alone": self.alone, "alone_at": at}

    def once_more(
        self, *, status: int | None, is_alone: bool, now: datetime, taken_at: datetime | None
    ) -> Failures:
        """After another attempt without a clear answer.

        Args:
            status: the HTTP status; None = no answer came.
            is_alone: it was sent by itself.
            now: the present instant.
            taken_at: when Lago last took an event that was sent to it; None = that is not known.
        """
        failures = self.failures + 1
        counts = is_alone and status is not None and status >= 500 and status not in AWAY
        if not counts or (self.alone_at is not None and now - self.alone_at < COUNTED_EVERY):
            return Failures(failures, self.alone, self.alone_at)
        others_got_through = self.alone_at is not None and taken_at is not None and taken_at >= self.alone_at
        return Failures(failures, self.alone + 1 if others_got_through else 1, now)

    @property
    def is_suspect(self) -> bool:
        """It may be why its batches fail."""
        return self.failures >= OFTEN

    @property
    def is_to_blame(self) -> bool:
        """Lago cannot digest it."""
        return self.alone >= TRIES_ALONE
