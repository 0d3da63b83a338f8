"""Which acts are open to a person for a session as it stands, the one that mends its cause first.

:mod:`billing.review` and :mod:`billing.closing` carry them out, and refuse what is not open any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ocpp_billing.charging.models import ChargingSession


class Act(StrEnum):
    """What a person can do about a session."""

    # Map the tag: settles all its sessions.
    MAP = "map"
    # The tag whose identity changed is the same one: settles all its sessions.
    ACKNOWLEDGE = "acknowledge"
    ACCEPT = "accept"
    CLOSE = "close"
    READING = "reading"
    RETRY = "retry"
    # A refund was given by a credit note.
    CREDIT = "credit"
    ASSIGN = "assign"
    EXCLUDE = "exclude"


# Of held sessions, by their reason; assigning is only open while Lago cannot know the session.
_HELD: dict[str, tuple[Act, ...]] = {
    Reason.IDENTITY_CONFLICT: (Act.ACKNOWLEDGE, Act.ACCEPT, Act.ASSIGN, Act.EXCLUDE),
    Reason.CLOCK_SKEW: (Act.ACCEPT, Act.READING, Act.EXCLUDE),
    Reason.NEGATIVE_ENERGY: (Act.READING, Act.EXCLUDE),
    Reason.IMPLAUSIBLE: (Act.ACCEPT, Act.READING, Act.EXCLUDE),
    Reason.REGISTER_OVERLAP: (Act.ACCEPT, Act.READING, Act.EXCLUDE),
    Reason.MANUAL_STOP_WITHOUT_EVIDENCE: (Act.READING, Act.ACCEPT, Act.EXCLUDE),
    Reason.KNOWN_BY_ANOTHER_SOURCE: (Act.ACCEPT, Act.EXCLUDE),
    # Billing it a second time is seldom meant.
    Reason.BILLED_BY_ANOTHER_SOURCE: (Act.EXCLUDE, Act.ACCEPT),
    Reason.UNMAPPED_TAG: (Act.MAP, Act.ASSIGN, Act.EXCLUDE),
    Reason.MAPPING_INACTIVE: (Act.MAP, Act.ASSIGN, Act.EXCLUDE),
    Reason.NO_SUBSCRIPTION: (Act.ASSIGN, Act.EXCLUDE),
    Reason.AMBIGUOUS_SUBSCRIPTION: (Act.ASSIGN, Act.EXCLUDE),
    Reason.METRIC_NOT_CHARGED: (Act.ASSIGN, Act.EXCLUDE),
    Reason.LATE_PERIOD: (Act.ACCEPT, Act.ASSIGN, Act.EXCLUDE),
    Reason.CHANGED_AFTER_BILLING: (Act.ACCEPT, Act.EXCLUDE),
    Reason.REFUND_BY_CREDIT_NOTE: (Act.CREDIT, Act.EXCLUDE),
    Reason.CONFLICT_IN_LAGO: (Act.EXCLUDE,),
    Reason.CHARGED_TWICE: (Act.CREDIT,),
}


@dataclass(frozen=True, slots=True)
class Standing:
    """As much of a session as its open acts depend on.

    Attributes:
        state: that names it.
        reason: of that state.
        sent: Lago may know an event of it.
        has_stop: it has a stop, of StEvE's or a person's; without one there is no time to bill it at.
        can_close: it can be closed in StEvE from here.
    """

    state: str
    reason: str | None
    sent: bool
    has_stop: bool
    can_close: bool


def open_acts(standing: Standing) -> list[Act]:
    """The acts that are open, in the order in which they should be offered."""
    acts: tuple[Act, ...] = ()
    match standing.state:
        case "held":
            acts = _HELD.get(standing.reason or "", ())
            if standing.reason == Reason.CLOCK_SKEW and not standing.has_stop:
                acts = (Act.READING, Act.EXCLUDE)
        case "stuck":
            acts = (Act.CLOSE, Act.READING, Act.EXCLUDE)
        case "rejected":
            acts = (Act.RETRY, Act.EXCLUDE)
        case "queued" if not standing.sent:
            acts = (Act.ASSIGN, Act.EXCLUDE)
    closed_to = set()
    if standing.sent:
        closed_to |= {Act.ASSIGN, Act.MAP}
    if not standing.can_close:
        closed_to.add(Act.CLOSE)
    return [act for act in acts if act not in closed_to]


def acts_of(
    sessions: Iterable[ChargingSession], *, closable: bool, sent: Collection[int] | None = None
) -> dict[int, list[Act]]:
    """The open acts of sessions, by their number, in one query.

    Args:
        sessions: any.
        closable: StEvE can be told to close sessions (:func:`billing.closing.known_capabilities`).
        sent: numbers of those with an event that was attempted and stands; None = that is asked for.
    """
    sessions = list(sessions)
    if sent is None:
        sent = set(
            UsageEvent.objects.filter(session__in=[session.pk for session in sessions], attempts__gt=0)
            .exclude(state="void")
            .values_list("session_id", flat=True)
        )
    return {
        session.pk: open_acts(
            Standing(
                state=session.state,
                reason=session.reason,
                sent=session.pk in sent,
                has_stop=session.stopped_at is not None or session.reading_stopped_at is not None,
                can_close=closable
                and session.vanished_at is None
                and session.superseded_at is None
                and (session.evidence or {}).get("source", "none") != "none",
            )
        )
        for session in sessions
    }
