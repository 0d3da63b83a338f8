"""Usage events that were attempted in vain and are too late: whether Lago could still bill them.

Such an event may be under way for ever: in a proxy, or in a leader that sleeps. Its energy may be billed by
another event only when Lago would not bill the first one even if it got it now. That is so when

- the charge is in arrears (one in advance is charged on arrival, whatever the event's time),
- the metric is not recurring (a recurring one counts earlier periods again), and
- the invoice of the period that holds the event's time is final, not a draft, and was cut without it.

Where one of these cannot be shown the event stays held, and a person may exclude it. What was given up and
turns up in Lago after all is a finding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.db import connection

from ocpp_billing import clock
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.database import Fence, fenced_transaction
from ocpp_billing.lago.delivery import SHOWN_WITHIN
from ocpp_billing.lago.errors import LagoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.contract import PlanCharge, SubscriptionRow
    from ocpp_billing.lago.directory import LagoDirectory
    from ocpp_billing.lago.wire import BillableMetric, Usage, UsageEvent

# Lago must twice, so long apart, be seen not to hold an event.
MISSING_FOR = SHOWN_WITHIN
# Lago hides an invoice while it makes it, which takes minutes, and one without anything to pay for ever.
HIDDEN_IS_FINAL_AFTER = timedelta(days=1)
# What was given up is looked for once a day, so long.
LOOK_FOR = timedelta(days=90)
LOOK_AGAIN = timedelta(days=1)
LOOK_AT = 100


@dataclass(frozen=True, slots=True)
class Standing:
    """How an event stands that Lago does not hold and would not bill.

    Attributes:
        reason: why it is held.
        says: the same in words, for a person.
        is_dead: Lago would not bill it even if it got it now, nor later.
        charged_on_arrival: Lago would charge it at once if it got it now.
    """

    reason: Reason
    says: str
    is_dead: bool = False
    charged_on_arrival: bool = False


@dataclass(slots=True)
class InvoicedPeriods:
    """What Lago has invoiced for good; each subscription and invoice is asked for once."""

    client: LagoClient
    directory: LagoDirectory
    _periods: dict[tuple[str, str], list[Usage]] = field(default_factory=dict)
    _final: dict[str, bool] = field(default_factory=dict)

    def standing_of(self, customer: str, event: UsageEvent, at: datetime) -> Standing:
        """Whether an event of that time that Lago does not hold could still be billed.

        Raises:
            LagoError: when Lago cannot be asked for the subscription or its plan.
        """
        rows = [
            row
            for row in self.directory.rows_of({customer}, clock.now())[customer]
            if row.external_id == event.external_subscription_id and row.contains(at)
        ]
        directory = self.directory
        standing = judge_late(
            rows, directory.charges(rows), directory.metric(), event, at, metric_code=directory.metric_code
        )
        if not standing.is_dead:
            return standing
        try:
            period = self.period_of(customer, event.external_subscription_id, at)
        except LagoError as error:
            return Standing(standing.reason, f"{standing.says}; its invoice cannot be asked for: {error}")
        if period is None:
            return Standing(standing.reason, f"{standing.says}, and its invoice is not final yet")
        return standing

    def period_of(self, customer: str, subscription: str, at: datetime) -> Usage | None:
        """The period that holds that instant, as invoiced; None while its invoice is not final.

        Raises:
            LagoError: when Lago does not say.
        """
        key = (customer, subscription)
        if key not in self._periods:
            self._periods[key] = self.client.past_usage(customer, subscription)
        for period in self._periods[key]:
            if period.contains(at):
                return period if self.is_final(period) else None
        return None

    def is_final(self, period: Usage) -> bool:
        """Whether the invoice of a past period counts nothing more.

        Raises:
            LagoError: when Lago does not say.
        """
        lago_id = period.lago_invoice_id
        if lago_id is None:
            return False
        if lago_id not in self._final:
            invoice = self.client.invoice(lago_id)
            hidden_long = clock.now() - period.to_datetime >= HIDDEN_IS_FINAL_AFTER
            self._final[lago_id] = hidden_long if invoice is None else invoice.is_final
        return self._final[lago_id]


def judge_late(
    rows: Sequence[SubscriptionRow],
    charges: dict[str, PlanCharge],
    metric: BillableMetric | None,
    event: UsageEvent,
    at: datetime,
    *,
    metric_code: str,
) -> Standing:
    """What subscription, plan and metric say about an event that is not to be sent. Pure.

    Args:
        rows: the subscription's rows that contain the event's time.
        charges: plan code -> how it charges the metric; plans that do not are absent.
        metric: the metric as configured; None = Lago has none of that code.
        event: that was attempted in vain.
        at: its time.
        metric_code: as configured; the event may have been made for another one.
    """
    name = event.external_subscription_id
    if not rows:
        return Standing(Reason.NO_SUBSCRIPTION, f"{name} was not in force at {at:%F %T} UTC, says Lago")
    another = (
        f"it was made for {event.code}, and LAGO_METRIC_CODE has been changed since: put {event.code} back "
        "until it is confirmed, or exclude it and bill it by hand"
    )
    is_another = metric_code != event.code
    if any(row.is_open_for(at) for row in rows):
        says = (
            f"the period of {name} is open, but Lago does not sum {event.value_field} of {event.code} there"
        )
        return Standing(Reason.METRIC_NOT_CHARGED, another if is_another else says)
    closed = f"the billing period of {name} that contains {at:%F %T} UTC is closed"
    if any(row.plan_code in charges and charges[row.plan_code].pay_in_advance for row in rows):
        says = (
            f"{closed}, but its plan charges in advance: Lago would charge the event whenever it arrives. "
            "Exclude it, and write an invoice by hand if Lago has not charged it"
        )
        return Standing(Reason.LATE_PERIOD, says, charged_on_arrival=True)
    if is_another:
        return Standing(Reason.LATE_PERIOD, f"{closed}, and {another}")
    if metric is None:
        return Standing(Reason.LATE_PERIOD, f"{closed}, and Lago has no metric {event.code}")
    if metric.recurring:
        says = f"{closed}, but {event.code} is recurring: Lago would count the event in the next period, too"
        return Standing(Reason.LATE_PERIOD, says)
    return Standing(Reason.LATE_PERIOD, closed, is_dead=True)


def look_for_what_was_given_up(source: str, client: LagoClient, fence: Fence | None) -> list[str]:
    """Events that were given up and are in Lago after all; each is found once.

    Raises:
        LagoError: when Lago cannot be asked.
    """
    now = clock.now()
    with connection.cursor() as cursor:
        cursor.execute(
            _TO_LOOK_FOR, {"source": source, "now": now, "since": now - LOOK_FOR, "limit": LOOK_AT}
        )
        rows = cursor.fetchall()
    found = [(event_id, name) for event_id, name in rows if client.event(name) is not None]
    if rows:
        bound = {
            "ids": [event_id for event_id, _ in rows],
            "found": [event_id for event_id, _ in found],
            "now": now,
            "again": now + LOOK_AGAIN,
        }
        with fenced_transaction("looked for given up", fence) as cursor:
            cursor.execute(_LOOKED_FOR, bound)
    return [name for _, name in found]


_TO_LOOK_FOR = """
SELECT id, transaction_id FROM usage_event
WHERE source_id = %(source)s AND given_up_at > %(since)s AND turned_up_at IS NULL
  AND next_attempt_at <= %(now)s
ORDER BY next_attempt_at, id LIMIT %(limit)s
"""

_LOOKED_FOR = """
UPDATE usage_event SET next_attempt_at = %(again)s,
    turned_up_at = CASE WHEN id = ANY(%(found)s::bigint[]) THEN %(now)s::timestamptz END
WHERE id = ANY(%(ids)s::bigint[]) AND turned_up_at IS NULL
"""
