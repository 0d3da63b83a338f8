"""One order about many sessions: each stands or falls by itself, because some may have changed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db import transaction

from ocpp_billing.billing.review import ReviewError
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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


def order_each(session_ids: Iterable[int], order: Callable[[int], None]) -> list[OrderOutcome]:
    """Give the same order about each of these sessions, in the order in which decisions lock them.

    Args:
        session_ids: our numbers; those that do not exist are left out.
        order: of :mod:`billing.review` and its like; refuses by a ReviewError.

    Returns:
        What became of each.
    """
    ids = sorted(set(session_ids))
    outcomes: list[OrderOutcome] = []
    for first in range(0, len(ids), CHUNK_SESSIONS):
        with effect("db commit orders"), transaction.atomic():
            chunk = ids[first : first + CHUNK_SESSIONS]
            sessions = ChargingSession.objects.filter(pk__in=chunk).order_by("pk").select_for_update()
            outcomes += [_order(session, order) for session in sessions]
    return outcomes


def _order(session: ChargingSession, order: Callable[[int], None]) -> OrderOutcome:
    try:
        with transaction.atomic():
            order(session.pk)
    except ReviewError as error:
        return OrderOutcome(session.pk, session.steve_id, at_stake_wh(session), str(error))
    return OrderOutcome(session.pk, session.steve_id, at_stake_wh(session))


def at_stake_wh(session: ChargingSession) -> int:
    """What an order about a session is about: what no event carries and waits, else all of it."""
    if session.rest_state == "held":
        return session.rest_wh
    return max(session.energy_wh or 0, 0)
