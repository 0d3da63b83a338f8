"""Taking an order of a person back, as long as that is honest: before Lago was told anything by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connection, transaction

from ocpp_billing import clock
from ocpp_billing.accounts import audit
from ocpp_billing.billing.models import EventKind, EventState, Ruling, RulingKind
from ocpp_billing.billing.outbox import hold_differences
from ocpp_billing.billing.refunds import take_back_credit
from ocpp_billing.billing.review import ReviewError
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from ocpp_billing.accounts.models import User


def is_carried_out(ruling: Ruling) -> bool:
    """Whether an order cannot be taken back any more.

    Something was sent to Lago by it; or an exclusion gave up what Lago might still get: billed anew, it
    could be billed twice.
    """
    events = ruling.session.events
    if ruling.kind == RulingKind.CREDIT:
        return False
    if ruling.kind == RulingKind.EXCLUDE:
        # A conflict in Lago was settled there by hand: that is done.
        settled = events.filter(state=EventState.EXCLUDED).exclude(kind=EventKind.CREDIT)
        return events.filter(given_up_at__isnull=False).exists() or settled.exists()
    sent = events.filter(created_at__gte=ruling.at, attempts__gt=0)
    return sent.exclude(state=EventState.VOID).exists()


def revoke(ruling_id: int, *, by: str, user: User | None = None) -> None:
    """Take an order back: the session stands as the rules say, and is decided anew.

    Raises:
        Ruling.DoesNotExist: when there is none of that number.
        ReviewError: when it was taken back or carried out already.
    """
    with effect("db commit revoke"), transaction.atomic(), connection.cursor() as cursor:
        session_id = Ruling.objects.values_list("session_id", flat=True).get(pk=ruling_id)
        session = ChargingSession.objects.select_for_update().get(pk=session_id)
        ruling = Ruling.objects.select_for_update().get(pk=ruling_id)
        if ruling.revoked_at is not None:
            raise ReviewError(f"The order about session {session.steve_id} was taken back already.")
        if is_carried_out(ruling):
            raise ReviewError(
                f"That order about session {session.steve_id} was carried out, and Lago deletes nothing: "
                "bill it by hand, move it to another subscription, or write a credit note."
            )
        ruling.revoked_at = clock.now()
        ruling.save(update_fields=["revoked_at"])
        before = {"state": session.state, "reason": session.reason}
        if ruling.kind == RulingKind.CREDIT:
            take_back_credit(session, ruling)
            hold_differences(cursor, [session.pk])
        elif ruling.kind == RulingKind.EXCLUDE and _was_still_open(session):
            cursor.execute(_OPEN_AGAIN, {"id": session.pk, "now": clock.now()})
        else:
            session.needs_decision, session.asked = True, session.asked + 1
            session.save(update_fields=["needs_decision", "asked"])
        audit.record(
            "session.revoke",
            user=user,
            actor=by,
            target=f"session:{session.source_id}:{session.steve_id}",
            before={**before, "order": ruling.kind, "note": ruling.note},
        )


def _was_still_open(session: ChargingSession) -> bool:
    """Whether the exclusion gave the session a stop of no energy, because it had none."""
    return session.stopped_at is None and session.reading_stop_wh == session.start_wh


# Whether it is stuck or just goes on is seen in the next run.
_OPEN_AGAIN = """
UPDATE charging_session SET
    reading_stop_wh = NULL, reading_stopped_at = NULL, stop_seen_at = NULL,
    revision = revision + 1, changed_at = %(now)s, needs_decision = true, asked = asked + 1,
    stuck_since = %(now)s,
    state = 'stuck', reason = NULL, rest_state = 'stuck', rest_reason = NULL, rest_wh = 0
WHERE id = %(id)s
"""
