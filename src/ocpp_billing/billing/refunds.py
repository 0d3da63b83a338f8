"""Refunds that Lago cannot honour by a usage event: a person gives them by credit note and says so here.

What was credited counts from then on like an event that Lago holds: a later change of the session is
settled against it, and nothing is credited twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connection, transaction

from ocpp_billing import clock
from ocpp_billing.accounts import audit
from ocpp_billing.billing.events import build_transaction_id
from ocpp_billing.billing.models import Decision, EventKind, EventState, Ruling, RulingKind, UsageEvent
from ocpp_billing.billing.outbox import restate_sessions
from ocpp_billing.billing.review import ReviewError
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from ocpp_billing.accounts.models import User


def settle_refund(
    session_id: int, *, credit_note: str, note: str = "", by: str, user: User | None = None
) -> None:
    """Say that what was billed too much of a session was credited in Lago by a credit note.

    That is a refund that no usage event can give, or a fee that Lago made a second time of one event: such an
    event is confirmed then, as it is charged once.

    Args:
        session_id: our number of the session.
        credit_note: its number, as Lago shows it.
        note: free text.
        by: who says so.
        user: their account, if any.

    Raises:
        ReviewError: without the number of the credit note, or when no refund of it is open.
    """
    if not credit_note.strip():
        raise ReviewError("Give the number of the credit note, as Lago shows it.")
    audit.refuse_long(note, ReviewError)
    says = f"credited by credit note {credit_note.strip()}"
    with effect("db commit refund"), transaction.atomic(), connection.cursor() as cursor:
        session = ChargingSession.objects.select_for_update().get(pk=session_id)
        moves = list(
            session.events.filter(state=EventState.HELD, reason=Reason.REFUND_BY_CREDIT_NOTE, attempts=0)
        )
        is_rest = session.rest_state == "held" and session.rest_reason == Reason.REFUND_BY_CREDIT_NOTE
        energy_wh = sum(event.energy_wh for event in moves) + (session.rest_wh if is_rest else 0)
        twice = list(session.events.filter(state=EventState.HELD, reason=Reason.CHARGED_TWICE))
        # One credit note settles one debt: the one that the session is shown with; the other is shown next.
        if twice and (session.reason == Reason.CHARGED_TWICE or not energy_wh):
            moves, is_rest, energy_wh = [], False, 0
        else:
            twice = []
        if not energy_wh and not twice:
            raise ReviewError(f"No refund of session {session.steve_id} is open ({session.state}).")
        ruling = Ruling.objects.create(
            session=session,
            kind=RulingKind.CREDIT,
            revision=session.revision,
            reason=Reason.REFUND_BY_CREDIT_NOTE if energy_wh else Reason.CHARGED_TWICE,
            note=f"{says}: {note.strip()}" if note.strip() else says,
            at=clock.now(),
            by=by,
            user=user,
        )
        answer = {"outcome": "credited", "says": says, "ruling": ruling.pk}
        for event in moves:
            event.state, event.reason, event.answer = EventState.EXCLUDED, Reason.CREDITED, answer
            event.save(update_fields=["state", "reason", "answer"])
        for event in twice:
            event.state, event.reason, event.confirmed_at = EventState.CONFIRMED, None, clock.now()
            event.answer = {**answer, "before": event.answer}
            event.save(update_fields=["state", "reason", "confirmed_at", "answer"])
        if is_rest:
            _write_credit(session, ruling, answer)
        restate_sessions(cursor, [session.pk])
        audit.record(
            "session.credit",
            user=user,
            actor=by,
            target=f"session:{session.source_id}:{session.steve_id}",
            before={"state": session.state, "reason": session.reason},
            after={
                "credited_wh": -energy_wh,
                "credit_note": credit_note.strip(),
                **({"charged_twice": [event.transaction_id for event in twice]} if twice else {}),
            },
            note=note,
        )


def _write_credit(session: ChargingSession, ruling: Ruling, answer: dict[str, object]) -> None:
    """Turn the open refund into an event of its own, to whom it was billed last; it is never sent."""
    last = session.events.exclude(state=EventState.VOID).order_by("-n").first()
    assert last is not None  # noqa: S101 - a refund is of what was sent
    decision = Decision.objects.create(
        session=session,
        revision=session.revision,
        outcome="exclude",
        reason=Reason.CREDITED,
        says=str(answer["says"]),
        energy_wh=session.energy_wh,
        external_customer_id=last.external_customer_id,
        external_subscription_id=last.external_subscription_id,
        decided_at=ruling.at,
        decided_by=ruling.by,
        user=ruling.user,
        note=ruling.note,
    )
    n = max(session.events.values_list("n", flat=True)) + 1
    UsageEvent.objects.create(
        source_id=session.source_id,
        session=session,
        decision=decision,
        n=n,
        transaction_id=build_transaction_id(
            session.source_id, session.steve_id, bytes(session.fingerprint), n
        ),
        kind=EventKind.CREDIT,
        external_customer_id=last.external_customer_id,
        external_subscription_id=last.external_subscription_id,
        lago_subscription_id=last.lago_subscription_id,
        period_from=last.period_from,
        period_to=last.period_to,
        metric_code=last.metric_code,
        field_name=last.field_name,
        energy_wh=session.rest_wh,
        timestamp=ruling.at,
        payload="{}",
        state=EventState.EXCLUDED,
        reason=Reason.CREDITED,
        answer=answer,
        next_attempt_at=ruling.at,
        created_at=ruling.at,
    )
    session.rest_state = session.rest_reason = None
    session.rest_wh = 0
    # A decision that was judged before does not know of the credit.
    session.asked += 1
    session.save(update_fields=["rest_state", "rest_reason", "rest_wh", "asked"])


def take_back_credit(session: ChargingSession, ruling: Ruling) -> None:
    """Undo :func:`settle_refund`; within the caller's transaction, the session being locked."""
    credited = session.events.filter(
        state=EventState.EXCLUDED, reason=Reason.CREDITED, answer__ruling=ruling.pk
    )
    credited.filter(kind=EventKind.MOVE).update(
        state=EventState.HELD, reason=Reason.REFUND_BY_CREDIT_NOTE, answer=None
    )
    credited.filter(kind=EventKind.CREDIT).update(state=EventState.VOID, reason=None)
    for event in session.events.filter(state=EventState.CONFIRMED, answer__ruling=ruling.pk):
        event.state, event.reason, event.confirmed_at = EventState.HELD, Reason.CHARGED_TWICE, None
        event.answer = (event.answer or {}).get("before")
        event.save(update_fields=["state", "reason", "confirmed_at", "answer"])
