"""One order about many sessions: each stands or falls by itself, because some may have changed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db import transaction

from ocpp_billing.billing.review import ReviewError
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# So many sessions stay locked at once; a worker that decides them waits for as long.
CHUNK_SESSIONS = 100


@dataclass(frozen=True, slots=True)
class OrderOutcome:
    """What became of an order about one session.

    Attributes:
        energy_wh: what it was about.
        refused: why it was not carried out; None = it was.
    """

    session_id: int
    steve_id: int
    energy_wh: int
    refused: str | None = None


def order_each(seen: Mapping[int, str], order: Callable[[int], None]) -> list[OrderOutcome]:
    """Give the same order about each of these sessions, in the order in which decisions lock them.

    Args:
        seen: our number of each session -> its :func:`standing` as the person saw it; those that do not
            exist are left out.
        order: of :mod:`billing.review` and its like; refuses by a ReviewError.

    Returns:
        What became of each.
    """
    ids = sorted(seen)
    outcomes: list[OrderOutcome] = []
    for first in range(0, len(ids), CHUNK_SESSIONS):
        with effect("db commit orders"), transaction.atomic():
            chunk = ids[first : first + CHUNK_SESSIONS]
            sessions = ChargingSession.objects.filter(pk__in=chunk).order_by("pk").select_for_update()
            outcomes += [_order(session, seen[session.pk], order) for session in sessions]
    return outcomes


def standing(session: ChargingSession) -> str:
    """What an order is about: another content, reason or amount would be another order."""
    return f"{session.revision}.{session.reason}.{at_stake_wh(session)}"


class ChangedMeanwhileError(ReviewError):
    """The session is not what the person saw."""


def order_as_seen(session_id: int, seen: str, order: Callable[[], str]) -> str:
    """Give an order about one session that stands as the person saw it: locked while that is looked at.

    Args:
        session_id: our number.
        seen: its :func:`standing` as it was shown.
        order: of :mod:`billing.review` and its like; asks nobody outside.

    Returns:
        What the order says.

    Raises:
        ChangedMeanwhileError: when it stands otherwise; nothing was done.
        ReviewError: when the order is refused.
    """
    with effect("db commit order"), transaction.atomic():
        session = ChargingSession.objects.select_for_update().get(pk=session_id)
        if standing(session) != seen:
            raise ChangedMeanwhileError(
                f"Session {session.steve_id} has changed meanwhile: look at it again."
            )
        return order()


def _order(session: ChargingSession, seen: str, order: Callable[[int], None]) -> OrderOutcome:
    refused = None
    if standing(session) != seen:
        refused = f"Session {session.steve_id} has changed meanwhile: look at it again."
    else:
        try:
            with transaction.atomic():
                order(session.pk)
        except ReviewError as error:
            refused = str(error)
    return OrderOutcome(session.pk, session.steve_id, at_stake_wh(session), refused)


def at_stake_wh(session: ChargingSession) -> int:
    """What an order about a session is about: what no event carries and waits, else all of it."""
    if session.rest_state == "held":
        return session.rest_wh
    return max(session.energy_wh or 0, 0)
