"""How far the reading of a StEvE has come: kept with its source as JSON, from one cycle to the next.

Instants are ISO 8601 with an offset. What is not there has not happened yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from ocpp_billing.steve.unseen import Queue

# What is asked now and then, by the key under which it is noted when that was.
Light = Literal["next", "vanished", "unseen_asked", "evidence_again"]
Asked = Light | Literal["active", "window", "tags"]
# Reads of a long time in windows, each of which goes on where it was cut off.
LongRead = Literal["backfill", "complete", "nightly"]
# Where a round over more ids than one cycle asks for has come.
Round = Literal["open_after", "watched_after"]


class Call(TypedDict):
    """When something was asked last."""

    at: str


class PacedCall(Call):
    """And how long StEvE took for it, which has to be made up for."""

    took_s: float


class Restoration(TypedDict):
    """StEvE was restored: ids after this one mean new sessions since then."""

    after: int
    at: str


# Not as a class: "from" is a word of Python's own.
Windows = TypedDict("Windows", {"before": str, "from": str, "width_s": int, "rows": int})
"""Where a long read stands: what is later than ``before`` is read, the next window begins at ``from``."""


class ReadingProgress(TypedDict, total=False):
    """All of it.

    Attributes:
        backfilled_at: when the whole history had been read for the first time.
        complete_at: when it was read again last.
        night: the night (its date) whose reading is done.
        backfill: the first read of the history, under way.
        complete: the monthly one.
        nightly: that of the last weeks.
        active: the list of open sessions.
        window: what started or stopped lately.
        window_rows: how many sessions that was.
        next: the next id, where a call carries one only.
        vanished: ids at the end that are gone.
        tags: the list of tags.
        evidence: meter values.
        evidence_again: those that were read before.
        details_failed: transactions (by id) whose meter values could not be read, and when.
        unseen: ids in new gaps that are asked for (again), see :mod:`ocpp_billing.steve.unseen`.
        unseen_asked: when calls were last made for them alone.
        crossed_to: gaps up to this id were crossed.
        gaps_after: where the nightly round over all gaps has come.
        recheck_after: the same for stops that may still change.
        open_after: the same for open sessions, in a cycle.
        watched_after: the same for those that the watch asks for.
        recognised_at: when the last known sessions were last found to be what they were.
        restored: the last restoration of StEvE.
        rests_until: until then StEvE's time that earlier cycles took is made up for.
        settings: those that decisions depend on, as they were at the last run.
        asked_again_on: the day on which everything held was last decided anew.
    """

    backfilled_at: str
    complete_at: str
    night: str
    backfill: Windows
    complete: Windows
    nightly: Windows
    active: PacedCall
    window: PacedCall
    window_rows: int
    next: Call
    vanished: Call
    tags: PacedCall
    evidence: PacedCall
    evidence_again: Call
    details_failed: dict[str, str]
    unseen: Queue
    unseen_asked: Call
    crossed_to: int
    gaps_after: int
    recheck_after: int
    open_after: int
    watched_after: int
    recognised_at: str
    restored: Restoration
    rests_until: str
    settings: str
    asked_again_on: str
