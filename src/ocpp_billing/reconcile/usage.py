"""What Lago counts and charges of a subscription, against what it took of us."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from ocpp_billing import clock
from ocpp_billing.billing.confirm import LOST_AFTER, Comparison, compare_usage, rounded, say_besides
from ocpp_billing.energy import say_kwh
from ocpp_billing.lago.errors import AnswerError, Forbidden, NoActiveSubscription, Unauthorised
from ocpp_billing.reconcile.differences import Difference, Period

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.directory import LagoDirectory
    from ocpp_billing.lago.wire import BillableMetric, Fee, Usage
    from ocpp_billing.reconcile.differences import Line
    from ocpp_billing.reconcile.ledger import LedgerWindow, TakenEvent


def compare_what_is_counted(
    line: Line, ledger: LedgerWindow, lago: LagoClient, directories: Mapping[str, LagoDirectory]
) -> Iterable[Difference]:
    """Compare what Lago counts for a subscription in each billing period that overlaps the window.

    What a plan charges in advance has a fee for each event. Where a plan, or its charge, changed from one to
    the other, each event is compared by what it was sent for, and one without a fee of its own is billed when
    the invoice of its period counts it.

    Args:
        line: of the subscription; gets its periods.
        ledger: what Lago took.
        lago: asked for what it counts, and for fees.
        directories: what Lago would bill, by metric code.
    """
    assert line.subscription is not None  # noqa: S101 - only those are asked for
    if line.customer is None:
        return
    for code, taken in ledger.taken(line.subscription).items():
        directory = directories[code]
        metric = directory.metric()
        if metric is None:
            yield Difference(
                "ledger and Lago",
                "metric_missing",
                line.subscription,
                code,
                f"Lago has no billable metric {code}, so nothing that was sent for it is counted.",
                "Was it deleted? Create it anew in Lago, with its charge, before the period is invoiced.",
            )
            continue
        counted = _Counted(line.customer, line.subscription, ledger, lago, directory, metric)
        charges = directory.charges_of_plans({event.plan_code for event in taken if event.plan_code})
        in_advance = {plan for plan, charge in charges.items() if charge.pay_in_advance}
        by_fees = [event for event in taken if event.plan_code in in_advance]
        in_arrears = [event for event in taken if event.plan_code not in in_advance]
        try:
            if by_fees:
                yield from _fees(line.subscription, by_fees, counted, lago, directory)
            if in_arrears:
                yield from _periods(line, in_arrears, by_fees, counted, directory)
        except (Unauthorised, Forbidden):
            raise
        except AnswerError as error:
            yield Difference(
                "ledger and Lago",
                "not_counted",
                line.subscription,
                "usage",
                f"Lago does not say what it counts: {error}",
                "Put it right in Lago, then look again.",
            )


class _Counted:
    """What Lago counts of one metric for a subscription, in its open period and in the invoiced ones."""

    def __init__(
        self,
        customer: str,
        subscription: str,
        ledger: LedgerWindow,
        lago: LagoClient,
        directory: LagoDirectory,
        metric: BillableMetric,
    ) -> None:
        self._customer = customer
        self._subscription = subscription
        self._ledger = ledger
        self._lago = lago
        self._directory = directory
        self.metric = metric
        self._past: list[Usage] | None = None

    def past(self) -> list[Usage]:
        """The invoiced periods, asked for once."""
        if self._past is None:
            self._past = list(
                self._lago.past_usage(self._customer, self._subscription, self._directory.metric_code)
            )
        return self._past

    def of_window(self) -> Iterable[tuple[Usage, bool]]:
        """Each billing period that overlaps the window: (usage, whether it is invoiced already)."""
        begin = to = self._ledger.to
        try:
            current = self._lago.current_usage(
                self._customer, self._subscription, self._directory.metric_code
            )
        except NoActiveSubscription:
            pass
        else:
            begin = current.from_datetime
            if current.from_datetime < to and current.to_datetime >= self._ledger.from_:
                yield current, False
        if self._ledger.from_ < begin:
            for past in self.past():
                overlaps = past.to_datetime >= self._ledger.from_ + timedelta(seconds=1)
                if past.from_datetime < to and overlaps:
                    yield past, True

    def compare(self, usage: Usage) -> Comparison | None:
        """A period against all that it was sent; None where Lago does not count the metric in it."""
        return compare_usage(
            self._ledger.source, self._subscription, usage, self._lago, self._directory, self.metric
        )


def _is_new(event: TakenEvent) -> bool:
    """What is done with an event after it was taken is a matter of minutes."""
    return event.accepted_at is not None and clock.now() - event.accepted_at < LOST_AFTER


# -- charged in arrears --------------------------------------------------------------------------------


def _periods(
    line: Line,
    in_arrears: Sequence[TakenEvent],
    by_fees: Sequence[TakenEvent],
    counted: _Counted,
    directory: LagoDirectory,
) -> Iterable[Difference]:
    for usage, invoiced in list(counted.of_window()):
        events = [event for event in in_arrears if usage.contains(event.timestamp)]
        if by_fees and not events:
            continue  # what it counts was charged event by event
        what = f"{usage.from_datetime:%Y-%m-%d} to {usage.to_datetime:%Y-%m-%d}"
        compared = counted.compare(usage)
        if compared is None:
            yield Difference(
                "ledger and Lago",
                "not_charged",
                line.subscription,
                what,
                f"The plan does not charge {directory.metric_code} in this period.",
                "Add the charge in Lago: ocpp-billing doctor says where.",
            )
            continue
        uncounted_wh = 0 if compared.agrees or invoiced else _uncounted_wh(compared, events, counted.metric)
        others = compared.others_kwh
        line.periods.append(
            Period(
                usage.from_datetime,
                usage.to_datetime,
                invoiced,
                f"{compared.counted_kwh:f}",
                compared.ours_wh,
                None if others is None else f"{others:f}",
                compared.agrees or uncounted_wh != 0,
                uncounted_wh,
            )
        )
        if not compared.agrees and not uncounted_wh:
            yield Difference(
                "ledger and Lago",
                "count_differs",
                line.subscription,
                what,
                f"Lago counts {compared.counted_kwh:f} kWh; ours are {say_kwh(compared.ours_wh)} kWh, "
                f"those of others {others or Decimal(0):f} kWh{say_besides(compared)}.",
                "Usage may lag behind by minutes: look again. Else the invoice is not what was sent: see the "
                "events of this subscription in Lago, and the plan's filters."
                if compared.missing_wh > 0
                else "Lago counts more than it was sent: see what else is there for this subscription. "
                "Invoice nothing by hand; where an invoice counts too much, write a credit note.",
            )


def _uncounted_wh(compared: Comparison, events: Sequence[TakenEvent], metric: BillableMetric) -> int:
    """The latest of these events, in Wh, when they explain the count: usage lags behind by minutes."""
    uncounted_wh = 0
    others = (compared.others_kwh or Decimal(0)) + compared.besides_kwh
    new = [(event.accepted_at, event.energy_wh) for event in events if _is_new(event)]
    for _, energy_wh in sorted(new, reverse=True):
        uncounted_wh += energy_wh
        counted = max(Decimal(compared.ours_wh - uncounted_wh) / 1000 + others, Decimal(0))
        if compared.counted_kwh == rounded(counted, metric):
            return uncounted_wh
    return 0


# -- charged in advance --------------------------------------------------------------------------------


def _fees(
    subscription: str,
    events: Sequence[TakenEvent],
    counted: _Counted,
    lago: LagoClient,
    directory: LagoDirectory,
) -> Iterable[Difference]:
    """Where the plan charges in advance each event has a fee of its own, and one only."""
    fees: dict[str, list[Fee]] = {}
    for fee in lago.fees(external_subscription_id=subscription, metric=directory.metric_code):
        if fee.event_transaction_id is not None:
            fees.setdefault(fee.event_transaction_id, []).append(fee)
    uncharged: list[TakenEvent] = []
    for event in events:
        of_event = fees.get(event.transaction_id, [])
        sent = Decimal(event.energy_wh) / 1000
        by_charge = Counter(fee.lago_charge_id for fee in of_event)
        if not of_event:
            uncharged.append(event)
        elif max(by_charge.values()) > 1 and not event.is_credited:
            yield Difference(
                "ledger and Lago",
                "billed_twice",
                subscription,
                event.transaction_id,
                f"Lago charged it {max(by_charge.values())} times: "
                f"{', '.join(f'{fee.units:f} kWh' for fee in of_event)}.",
                "Write a credit note in Lago over all of its fees but one, and report it.",
            )
        elif any(fee.units != sent for fee in of_event):
            yield Difference(
                "ledger and Lago",
                "fee_differs",
                subscription,
                event.transaction_id,
                f"Lago charged {of_event[0].units:f} kWh for it, {say_kwh(event.energy_wh)} kWh were sent.",
                "See the fee of this event in Lago, and the plan's filters; credit or invoice what differs.",
            )
    billed_otherwise = _in_invoices(uncharged, counted)
    for event in uncharged:
        if event.transaction_id not in billed_otherwise and not _is_new(event):
            yield Difference(
                "ledger and Lago",
                "no_fee",
                subscription,
                event.transaction_id,
                "The plan charges in advance, and Lago made no fee of this event.",
                "Look at Lago's background jobs; a fee that was lost is not made again by itself.",
            )


def _in_invoices(events: Sequence[TakenEvent], counted: _Counted) -> set[str]:
    """Which events were billed in arrears, before their plan's charge was paid in advance.

    Those whose period has an invoice that counts all that was sent for it.
    """
    if not events:
        return set()
    found: set[str] = set()
    for usage in counted.past():
        inside = {event.transaction_id for event in events if usage.contains(event.timestamp)}
        compared = counted.compare(usage) if inside else None
        if compared is not None and compared.agrees and compared.counted_kwh > 0:
            found |= inside
    return found
