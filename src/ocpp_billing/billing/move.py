"""Moving billed sessions to another subscription: an explicit act of a person, after a preview.

Lago cannot change an event. A move takes the energy back where it was billed (a negative event, where
Lago honours one, else a refund to credit by hand) and bills it where it belongs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from django.db import transaction

from ocpp_billing import clock
from ocpp_billing.accounts import audit
from ocpp_billing.billing.events import EventFacts, build_event, build_transaction_id
from ocpp_billing.billing.models import Decision, UsageEvent
from ocpp_billing.billing.outbox import restate_sessions
from ocpp_billing.billing.taking_back import leaves_enough
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.effects import effect
from ocpp_billing.lago.contract import Chosen, NotBilled, choose_subscription

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ocpp_billing.accounts.models import User
    from ocpp_billing.billing.decide import DecisionPolicy
    from ocpp_billing.lago.contract import PlanCharge, SubscriptionRow
    from ocpp_billing.lago.directory import LagoDirectory


class MoveError(Exception):
    """A session cannot be moved as asked; says why."""


@dataclass(frozen=True, slots=True)
class Move:
    """What moving one session does.

    Attributes:
        energy_wh: what is billed now and is billed to the other subscription then.
        from_: (customer, subscription) and its energy, for each that it is billed to now.
        refund_by_hand: of those, the subscriptions where Lago would not honour a negative event.
        to: the subscription row that bills it then, and the time of the event.
    """

    session_id: int
    steve_id: int
    energy_wh: int
    from_: tuple[tuple[str, str, int], ...]
    refund_by_hand: frozenset[str]
    to: Chosen
    event_at: datetime


def preview_move(
    session_ids: Sequence[int],
    *,
    customer: str,
    subscription: str | None,
    policy: DecisionPolicy,
    directory: LagoDirectory,
) -> list[Move]:
    """Work out what moving these sessions would do; nothing is changed.

    Raises:
        MoveError: naming the first session that cannot be moved, and why.
        LagoError: when Lago cannot be asked.
    """
    sessions = ChargingSession.objects.filter(pk__in=session_ids).order_by("steve_id")
    return [_plan(session, customer, subscription, policy, directory) for session in sessions]


def _plan(
    session: ChargingSession,
    customer: str,
    subscription: str | None,
    policy: DecisionPolicy,
    directory: LagoDirectory,
) -> Move:
    stopped_at = session.reading_stopped_at or session.stopped_at
    billed = _billed(session)
    if not billed or stopped_at is None:
        raise MoveError(f"Session {session.steve_id} is not billed: assign it instead.")
    rows = directory.rows_of({customer, *(payer for payer, _ in billed)}, clock.now())
    charges = directory.charges(row for of_customer in rows.values() for row in of_customer)
    for event_at in (stopped_at, clock.now()):
        to = choose_subscription(
            rows[customer],
            charges,
            event_at,
            customer=customer,
            subscription=subscription,
            metric_code=policy.metric_code,
        )
        if isinstance(to, Chosen) or to.reason is not Reason.LATE_PERIOD:
            break
    if isinstance(to, NotBilled):
        raise MoveError(f"Session {session.steve_id} cannot be billed there: {to.says}.")
    if set(billed) == {(customer, to.row.external_id)}:
        raise MoveError(f"Session {session.steve_id} is billed to {to.row.external_id} already.")
    return Move(
        session_id=session.pk,
        steve_id=session.steve_id,
        energy_wh=sum(billed.values()),
        from_=tuple((payer, old, energy_wh) for (payer, old), energy_wh in sorted(billed.items())),
        refund_by_hand=frozenset(
            old
            for (payer, old), energy_wh in billed.items()
            if not _can_be_taken_back(
                rows[payer], charges, old, stopped_at, energy_wh, directory, policy.source
            )
        ),
        to=to,
        event_at=event_at,
    )


def billed_to(session: ChargingSession) -> list[tuple[str, str, int]]:
    """To whom a session is billed now: (customer, subscription, Wh); empty where it cannot be moved (yet)."""
    try:
        billed = _billed(session)
    except MoveError:
        return []
    return [(customer, subscription, wh) for (customer, subscription), wh in sorted(billed.items())]


def _billed(session: ChargingSession) -> dict[tuple[str, str], int]:
    """What is billed of a session, in Wh, by (customer, subscription).

    Raises:
        MoveError: while an event of it is under way.
    """
    billed: dict[tuple[str, str], int] = {}
    for event in session.events.exclude(state="void"):
        if event.state not in {"accepted", "confirmed", "excluded"}:
            raise MoveError(
                f"Session {session.steve_id} cannot be moved while an event of it is {event.state}."
            )
        key = (event.external_customer_id, event.external_subscription_id)
        billed[key] = billed.get(key, 0) + event.energy_wh
    return {key: energy_wh for key, energy_wh in billed.items() if energy_wh}


def _can_be_taken_back(
    rows: Sequence[SubscriptionRow],
    charges: Mapping[str, PlanCharge],
    subscription: str,
    at: datetime,
    energy_wh: int,
    directory: LagoDirectory,
    source: str,
) -> bool:
    """Whether Lago would honour a negative event there: open, in arrears, and enough to take from."""
    row = next((row for row in rows if row.external_id == subscription and row.contains(at)), None)
    if row is None or not row.is_open_for(at):
        return False
    charge = charges.get(row.plan_code)
    if charge is None or charge.pay_in_advance:
        return False
    return energy_wh < 0 or leaves_enough(source, row, -energy_wh, directory)


def carry_out_move(
    move: Move,
    *,
    policy: DecisionPolicy,
    directory: LagoDirectory,
    note: str,
    by: str,
    user: User | None = None,
) -> None:
    """Do what the preview said: queue the negative and the positive events of one session.

    Raises:
        MoveError: when the session changed since the preview, or the note is too long.
    """
    audit.refuse_long(note, MoveError)
    if directory.field_name is None:
        raise MoveError(f"The billable metric {policy.metric_code} does not sum a field in Lago.")
    with effect("db commit move"), transaction.atomic():
        session = ChargingSession.objects.select_for_update().get(pk=move.session_id)
        events = list(session.events.exclude(state="void"))
        billed = tuple(
            (payer, old, energy_wh) for (payer, old), energy_wh in sorted(_billed(session).items())
        )
        if billed != move.from_:
            raise MoveError(f"Session {session.steve_id} has changed since the preview: look at it again.")
        decision = Decision.objects.create(
            session=session,
            revision=session.revision,
            outcome="bill",
            says=f"moved to {move.to.row.external_id}",
            energy_wh=move.energy_wh,
            external_customer_id=move.to.row.external_customer_id,
            external_subscription_id=move.to.row.external_id,
            decided_at=clock.now(),
            decided_by=by,
            user=user,
            note=note,
        )
        n = max(session.events.values_list("n", flat=True))
        for payer, old, energy_wh in move.from_:
            n += 1
            last = next(event for event in reversed(events) if event.external_subscription_id == old)
            by_hand = old in move.refund_by_hand
            _queue(
                session,
                decision,
                n,
                -energy_wh,
                policy,
                directory.field_name,
                customer=payer,
                subscription=old,
                row=(last.lago_subscription_id, last.period_from, last.period_to),
                at=session.reading_stopped_at or session.stopped_at or clock.now(),
                held=Reason.REFUND_BY_CREDIT_NOTE if by_hand else None,
            )
        row = move.to.row
        _queue(
            session,
            decision,
            n + 1,
            move.energy_wh,
            policy,
            directory.field_name,
            customer=row.external_customer_id,
            subscription=row.external_id,
            row=(row.lago_id, row.period_from, row.period_to),
            at=move.event_at,
        )
        with transaction.get_connection().cursor() as cursor:
            restate_sessions(cursor, [session.pk])
        audit.record(
            "session.move",
            user=user,
            actor=by,
            target=f"session:{session.source_id}:{session.steve_id}",
            before={"billed": [list(part) for part in move.from_]},
            after={
                "subscription": row.external_id,
                "energy_wh": move.energy_wh,
                "refund_by_hand": sorted(move.refund_by_hand),
            },
            note=note,
        )


def _queue(
    session: ChargingSession,
    decision: Decision,
    n: int,
    energy_wh: int,
    policy: DecisionPolicy,
    field_name: str,
    *,
    customer: str,
    subscription: str,
    row: tuple[str, datetime | None, datetime | None],
    at: datetime,
    held: Reason | None = None,
) -> None:
    stopped_at = session.reading_stopped_at or session.stopped_at or at
    event = build_event(
        EventFacts(
            transaction_id=build_transaction_id(
                policy.source, session.steve_id, bytes(session.fingerprint), n
            ),
            external_subscription_id=subscription,
            metric_code=policy.metric_code,
            field_name=field_name,
            energy_wh=energy_wh,
            timestamp=at,
            charge_box_id=session.charge_box_id,
            connector_id=session.connector_id,
            started_at=session.started_at or stopped_at,
            stopped_at=stopped_at,
            steve_transaction_id=session.steve_id,
            id_tag=session.id_tag_text,
            send_id_tag=policy.send_id_tag,
        )
    )
    UsageEvent.objects.create(
        source_id=session.source_id,
        session=session,
        decision=decision,
        n=n,
        transaction_id=event.transaction_id,
        kind="move",
        external_customer_id=customer,
        external_subscription_id=subscription,
        lago_subscription_id=row[0],
        period_from=row[1],
        period_to=row[2],
        metric_code=policy.metric_code,
        field_name=field_name,
        energy_wh=energy_wh,
        timestamp=at,
        payload=msgspec.json.encode(event.to_payload()).decode(),
        state="held" if held else "queued",
        reason=None if held is None else str(held),
        next_attempt_at=clock.now(),
        created_at=clock.now(),
    )
