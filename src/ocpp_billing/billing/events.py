"""Usage events: what exactly is sent to Lago, and how much of a session is still to be sent. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from ocpp_billing.charging.reasons import Reason
from ocpp_billing.energy import format_kwh
from ocpp_billing.lago.wire import UsageEvent, timestamp_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime


def build_transaction_id(source: str, steve_id: int, fingerprint: bytes, n: int) -> str:
    """The id of a usage event: the same session and part always give the same id, others never do.

    Lago wants it unique in the whole organisation, of ``[A-Za-z0-9_:-]``; the
    fingerprint keeps apart what a restored StEvE numbers alike.
    """
    return f"steve:{source}:{steve_id}-{fingerprint[:4].hex()}:{n}"


@dataclass(frozen=True, slots=True)
class EventFacts:
    """What a usage event says about its session. Times are aware, in UTC; energy in Wh, signed."""

    transaction_id: str
    external_subscription_id: str
    metric_code: str
    field_name: str
    energy_wh: int
    timestamp: datetime
    charge_box_id: str
    connector_id: int
    started_at: datetime
    stopped_at: datetime
    steve_transaction_id: int
    id_tag: str
    send_id_tag: bool


def build_event(facts: EventFacts) -> UsageEvent:
    """The event as it is frozen in the outbox and sent, the same at every attempt.

    The id tag is a credential and personal data, and Lago cannot delete an event: only its last four
    characters go along unless ``LAGO_SEND_ID_TAG`` says otherwise, and none of a tag that has no more.
    """
    kwh = format_kwh(facts.energy_wh)
    properties = {
        facts.field_name: kwh,
        "charge_box_id": facts.charge_box_id,
        "connector_id": str(facts.connector_id),
        "started_at": _iso(facts.started_at),
        "stopped_at": _iso(facts.stopped_at),
        "duration_s": str((facts.stopped_at - facts.started_at) // timedelta(seconds=1)),
        "steve_transaction_id": str(facts.steve_transaction_id),
        "id_tag_last4": facts.id_tag[-4:] if len(facts.id_tag) > 4 else "",
    }
    if facts.send_id_tag:
        properties["id_tag"] = facts.id_tag
    properties[facts.field_name] = kwh  # also where the metric's field is called like one of ours
    return UsageEvent(
        transaction_id=facts.transaction_id,
        code=facts.metric_code,
        external_subscription_id=facts.external_subscription_id,
        timestamp=timestamp_text(facts.timestamp),
        properties=properties,
        value_field=facts.field_name,
    )


def _iso(at: datetime) -> str:
    return at.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


class EventForm(NamedTuple):
    """What an event is built for: another form of the same energy is another event.

    Attributes:
        lago_subscription_id: Lago's id of the subscription row.
        metric_code: the billable metric.
        field_name: the property that it sums.
        period_from: when the row's open billing period began, as Lago said: an event that was still
            waiting when that period closed would never be billed as it is.
    """

    lago_subscription_id: str
    metric_code: str
    field_name: str
    period_from: datetime | None


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """A non-void usage event of a session.

    Attributes:
        energy_wh: what it says.
        attempted: Lago may know it.
        form: which subscription row, metric, field and billing period it was built for.
    """

    event_id: int
    energy_wh: int
    attempted: bool
    form: EventForm


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a decision does to the parts of a session.

    ``void`` + ``bill_wh`` + ``rest_wh`` and the events that stay always add up to the energy read.

    Attributes:
        void: ids of events that were never attempted and no longer hold.
        bill_wh: energy of a new usage event; None = none.
        correction: the new event corrects what Lago may know already.
        rest_state: ``held`` or ``excluded`` for what no event carries; None = nothing is left.
        rest_reason: why.
        rest_wh: how much; negative when more was billed than was delivered.
    """

    void: tuple[int, ...] = ()
    bill_wh: int | None = None
    correction: bool = False
    rest_state: str | None = None
    rest_reason: Reason | None = None
    rest_wh: int = 0


def settle(
    *,
    energy_wh: int,
    outcome: str,
    reason: Reason | None,
    form: EventForm | None,
    events: Sequence[KnownEvent],
    max_auto_correction_wh: int,
    negative_is_honoured: Callable[[int], bool] = lambda _energy_wh: False,
) -> Settlement:
    """Work out what is to be sent, taken back or kept, given what Lago may know already.

    Args:
        energy_wh: what the registers say; a negative energy counts as 0.
        outcome: ``bill``, ``hold`` or ``exclude``.
        reason: of a hold or exclusion; a person's exclusion also settles what was billed differently.
        form: what a new event would be built for.
        events: the session's non-void events.
        max_auto_correction_wh: a larger correction waits for approval.
        negative_is_honoured: whether Lago would count a negative event of so many Wh in full.
    """
    sent_wh = sum(event.energy_wh for event in events if event.attempted)
    waiting = [event for event in events if not event.attempted]
    was_sent = len(waiting) < len(events)
    open_wh = max(energy_wh, 0) - sent_wh
    void = tuple(event.event_id for event in waiting)
    if reason is Reason.BY_OPERATOR:
        if was_sent and open_wh == 0:
            return Settlement(void)
        return Settlement(void, rest_state="excluded", rest_reason=reason, rest_wh=open_wh)
    if outcome != "bill":
        if was_sent:
            return _keep_what_was_sent(void, open_wh)
        rest_state = "held" if outcome == "hold" else "excluded"
        return Settlement(void, rest_state=rest_state, rest_reason=reason, rest_wh=open_wh)
    if open_wh == sum(event.energy_wh for event in waiting) and all(event.form == form for event in waiting):
        return Settlement()
    if open_wh == 0 or not was_sent:
        return Settlement(void, bill_wh=open_wh or None)
    if open_wh < 0 and not negative_is_honoured(open_wh):
        return _keep_what_was_sent(void, open_wh)
    if abs(open_wh) > max_auto_correction_wh:
        return Settlement(void, rest_state="held", rest_reason=Reason.CHANGED_AFTER_BILLING, rest_wh=open_wh)
    return Settlement(void, bill_wh=open_wh, correction=True)


def _keep_what_was_sent(void: tuple[int, ...], open_wh: int) -> Settlement:
    """Lago pays nothing back and deletes nothing: what differs now is held, with its amount."""
    if open_wh == 0:
        return Settlement(void)
    reason = Reason.REFUND_BY_CREDIT_NOTE if open_wh < 0 else Reason.CHANGED_AFTER_BILLING
    return Settlement(void, rest_state="held", rest_reason=reason, rest_wh=open_wh)
