"""What a person orders about a session: accept, exclude, assign, or a reading. Each is audited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connection, transaction
from django.db.models import Q

from ocpp_billing import clock
from ocpp_billing.accounts import audit
from ocpp_billing.billing.failures import Failures
from ocpp_billing.billing.models import Ruling, RulingKind, UsageEvent
from ocpp_billing.billing.outbox import hold_differences, restate_sessions
from ocpp_billing.charging.models import ChargingSession, IdTag
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.charging.tags import ask_again_for_tags
from ocpp_billing.effects import effect
from ocpp_billing.energy import say_kwh

if TYPE_CHECKING:
    from datetime import datetime

    from django.db.models import QuerySet

    from ocpp_billing.accounts.models import User

# Reasons that a person may override. The others need their cause mended: a mapping, a subscription, a
# charge in Lago; or a reading, where the registers themselves are wrong; or an exclusion.
ACCEPTABLE = frozenset(
    {
        Reason.IDENTITY_CONFLICT,
        Reason.KNOWN_BY_ANOTHER_SOURCE,
        Reason.BILLED_BY_ANOTHER_SOURCE,
        Reason.CLOCK_SKEW,
        Reason.IMPLAUSIBLE,
        Reason.REGISTER_OVERLAP,
        Reason.MANUAL_STOP_WITHOUT_EVIDENCE,
        Reason.LATE_PERIOD,
        Reason.CHANGED_AFTER_BILLING,
    }
)
HIGHEST_REGISTER_WH = 2**31 - 1


class ReviewError(Exception):
    """The order cannot be carried out; says why and what to do instead."""


def accept(session_id: int, *, note: str, by: str, user: User | None = None) -> None:
    """Bill a held session although a rule holds it; the later rules still count.

    Raises:
        ReviewError: when it is not held, or its reason cannot be overridden.
    """
    with effect("db commit ruling"), transaction.atomic():
        session = _locked(session_id)
        reason = session.reason
        if session.state != "held" or reason is None:
            raise ReviewError(f"Session {session.steve_id} is not held ({session.state}).")
        if reason not in ACCEPTABLE:
            raise ReviewError(
                f"A session held as {reason} cannot simply be accepted: mend the cause, or exclude it."
            )
        charged_on_arrival = _in_vain(session).filter(answer__charged_on_arrival=True).first()
        if reason == Reason.LATE_PERIOD and charged_on_arrival is not None:
            raise ReviewError(
                f"{charged_on_arrival} was sent and its answer lost, and Lago charges in advance: it would "
                "charge that event whenever it arrives, and another one, too. Exclude the session, and write "
                "an invoice by hand if Lago does not charge it."
            )
        if reason == Reason.CLOCK_SKEW and session.started_at is None and session.stopped_at is None:
            raise ReviewError("The session has no time at all: enter a reading first.")
        _order(session, RulingKind.ACCEPT, note, by, user, reason=reason)


def exclude(session_id: int, *, note: str, by: str, user: User | None = None) -> None:
    """Never bill what is left of a session; what Lago already has stays there.

    What was sent in vain, or Lago refused, is given up: should Lago get it after all, that is a finding.
    A conflict in Lago counts as settled there by hand, with what we know of it: a later change of the
    session is settled against that.

    Raises:
        ReviewError: without a note, or when nothing is left to exclude.
    """
    if not note.strip():
        raise ReviewError("Say why: an exclusion needs a note.")
    with effect("db commit ruling"), transaction.atomic():
        session = _locked(session_id)
        if session.state in {"accepted", "confirmed"}:
            raise ReviewError(
                f"Session {session.steve_id} is billed. Lago cannot take an event back: write a credit note."
            )
        if session.events.filter(state="held", reason=Reason.CHARGED_TWICE).exists():
            raise ReviewError(
                f"Lago charged an event of session {session.steve_id} twice, which no exclusion takes back: "
                "write a credit note over the second fee there, then give its number here as credited."
            )
        if session.state in {"open", "stuck"} and session.reading_stopped_at is None:
            _set_reading(session, session.start_wh, session.started_at or clock.now())
        void: dict[str, Any] = {"state": "void", "reason": None}
        given_up = {"given_up_at": clock.now(), "next_attempt_at": clock.now(), "lease": None}
        session.events.filter(state="held", reason=Reason.CONFLICT_IN_LAGO).update(
            state="excluded", reason=Reason.BY_OPERATOR
        )
        moves = session.events.filter(kind="move", state="held", attempts=0).update(**void)
        in_vain = _in_vain(session) | session.events.filter(state="rejected")
        if moves + in_vain.update(**void, **given_up):
            with connection.cursor() as cursor:
                hold_differences(cursor, [session.pk])
            session.refresh_from_db()
        _order(session, RulingKind.EXCLUDE, note, by, user)


def assign(
    session_id: int,
    *,
    customer: str,
    subscription: str | None,
    note: str,
    by: str,
    user: User | None = None,
) -> None:
    """Let a customer pay for this one session, whatever the mapping says.

    Raises:
        ReviewError: when the session was sent to somebody already (then it is moved, not assigned).
    """
    if not customer.strip():
        raise ReviewError("Choose a customer: Lago's external customer id is missing.")
    with effect("db commit ruling"), transaction.atomic():
        session = _locked(session_id)
        if session.events.filter(attempts__gt=0).exclude(state="void").exists():
            raise ReviewError(f"Session {session.steve_id} was sent to Lago already: move it instead.")
        _order(
            session,
            RulingKind.ASSIGN,
            note,
            by,
            user,
            customer_external_id=customer.strip(),
            subscription_external_id=(subscription or "").strip() or None,
        )


def enter_reading(
    session_id: int, *, stop_wh: int, stopped_at: datetime, note: str, by: str, user: User | None = None
) -> None:
    """Say what the meter showed at the end, where StEvE has no usable stop.

    Raises:
        ReviewError: when the reading cannot be right.
    """
    if not note.strip():
        raise ReviewError("Say where the reading comes from: a reading needs a note.")
    audit.refuse_long(note, ReviewError)
    with effect("db commit reading"), transaction.atomic():
        session = _locked(session_id)
        if not session.start_wh <= stop_wh <= HIGHEST_REGISTER_WH:
            raise ReviewError(
                f"The reading must be at least the start register, {say_kwh(session.start_wh)} kWh, and at "
                f"most {say_kwh(HIGHEST_REGISTER_WH)} kWh."
            )
        if stopped_at > clock.now() or (session.started_at is not None and stopped_at < session.started_at):
            raise ReviewError("The stop must lie between the start of the session and now.")
        before = {"stop_wh": session.stop_wh, "reading_stop_wh": session.reading_stop_wh}
        _set_reading(session, stop_wh, stopped_at)
        audit.record(
            "session.reading",
            user=user,
            actor=by,
            target=f"session:{session.source_id}:{session.steve_id}",
            before=before,
            after={"reading_stop_wh": stop_wh, "reading_stopped_at": stopped_at.isoformat()},
            note=note,
        )


def retry_rejected(event_id: int, *, by: str, user: User | None = None, note: str = "") -> None:
    """Send an event again that Lago refused or could not digest, after the cause was mended.

    Raises:
        ReviewError: when it is not rejected, or the note is too long.
    """
    audit.refuse_long(note, ReviewError)
    with effect("db commit retry"), transaction.atomic(), connection.cursor() as cursor:
        # The session first, as every act of a person locks it.
        _locked(UsageEvent.objects.values_list("session_id", flat=True).get(pk=event_id))
        event = UsageEvent.objects.select_for_update().get(pk=event_id)
        if event.state != "rejected":
            raise ReviewError(f"The event {event.transaction_id} is not rejected ({event.state}).")
        before = event.answer
        event.state, event.reason, event.next_attempt_at = "queued", None, clock.now()
        # What it failed at before counts against it no more.
        event.answer = {**(before or {}), **Failures().as_answer()}
        event.save(update_fields=["state", "reason", "next_attempt_at", "answer"])
        restate_sessions(cursor, [event.session_id])
        audit.record(
            "event.retry",
            user=user,
            actor=by,
            target=f"event:{event.transaction_id}",
            before={"answer": before},
            note=note,
        )


def retry_session(session_id: int, *, by: str, user: User | None = None, note: str = "") -> None:
    """Send all events of a session again that Lago refused.

    Raises:
        ReviewError: when there is none.
    """
    events = UsageEvent.objects.filter(session=session_id, state="rejected").order_by("pk")
    rejected = list(events.values_list("pk", flat=True))
    if not rejected:
        raise ReviewError("Lago refused nothing of that session, or it is queued again already.")
    for event_id in rejected:
        retry_rejected(event_id, by=by, user=user, note=note)


def acknowledge_identity(tag_id: int, *, note: str, by: str, user: User | None = None) -> None:
    """Say that a tag whose number or text changed in StEvE is still the same one; its sessions go on.

    Raises:
        ReviewError: when the note is too long.
    """
    audit.refuse_long(note, ReviewError)
    with effect("db commit identity"), transaction.atomic(), connection.cursor() as cursor:
        tag = IdTag.objects.select_for_update().get(pk=tag_id)
        before, tag.identity_conflict = tag.identity_conflict, None
        tag.save(update_fields=["identity_conflict"])
        ask_again_for_tags(cursor, [tag_id])
        audit.record(
            "tag.acknowledge",
            user=user,
            actor=by,
            target=f"tag:{tag.text}",
            before={"identity_conflict": before},
            note=note,
        )


def _locked(session_id: int) -> ChargingSession:
    return ChargingSession.objects.select_for_update().get(pk=session_id)


def _in_vain(session: ChargingSession) -> QuerySet[UsageEvent]:
    """Held events of a session that were sent and are not in Lago."""
    missing = Q(answer__outcome="not found") | Q(given_up_at__isnull=False)
    return session.events.filter(missing, state="held", attempts__gt=0)


def _order(
    session: ChargingSession, kind: RulingKind, note: str, by: str, user: User | None, **values: str | None
) -> None:
    """Write the ruling, ask for a new decision, and record both."""
    audit.refuse_long(note, ReviewError)
    Ruling.objects.create(
        session=session,
        kind=kind,
        revision=session.revision,
        note=note,
        at=clock.now(),
        by=by,
        user=user,
        **values,
    )
    session.needs_decision, session.asked = True, session.asked + 1
    session.save(update_fields=["needs_decision", "asked"])
    audit.record(
        f"session.{kind.value}",
        user=user,
        actor=by,
        target=f"session:{session.source_id}:{session.steve_id}",
        before={"state": session.state, "reason": session.reason},
        after={key: value for key, value in values.items() if value is not None} or None,
        note=note,
    )


def _set_reading(session: ChargingSession, stop_wh: int, stopped_at: datetime) -> None:
    """Make the reading the session's stop: its energy is known from now on, and held until decided."""
    with connection.cursor() as cursor:
        cursor.execute(
            _SET_READING, {"id": session.pk, "stop_wh": stop_wh, "at": stopped_at, "now": clock.now()}
        )
    session.refresh_from_db()


_SET_READING = """
UPDATE charging_session s SET
    reading_stop_wh = %(stop_wh)s, reading_stopped_at = %(at)s,
    revision = revision + 1, changed_at = %(now)s, stop_seen_at = coalesce(stop_seen_at, %(now)s),
    stuck_since = NULL, needs_decision = true, asked = asked + 1,
    state = 'held', reason = 'undecided', rest_state = 'held', rest_reason = 'undecided',
    rest_wh = %(stop_wh)s - start_wh - coalesce((
        SELECT sum(e.energy_wh) FROM usage_event e WHERE e.session_id = s.id AND e.state <> 'void'
    ), 0)
WHERE id = %(id)s
"""
