"""The books of one Lago organisation: its catalogue, events, subscriptions and invoices, moved by a clock."""

from __future__ import annotations

import heapq
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ocpp_billing.simulators.lago_catalogue import (
    EXISTS,
    INVALID,
    MANDATORY,
    Catalogue,
    Charge,
    Customer,
    Plan,
)
from ocpp_billing.simulators.lago_events import EventStore, StoredEvent, StoreName
from ocpp_billing.simulators.lago_formats import (
    from_us,
    is_datetime,
    lago_uuid,
    not_found,
    read_time,
    to_us,
    unprocessable,
)
from ocpp_billing.simulators.lago_periods import BILLING_TIMES
from ocpp_billing.simulators.lago_subscriptions import BilledPeriod, Fee, Invoice, Subscription
from ocpp_billing.simulators.lago_usage import (
    UsageCache,
    UsageLine,
    advance_units,
    bucket_of,
    counted_events,
    usage_lines,
    whole_cents,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from ocpp_billing.simulators.lago_usage import Bucket

FOREVER = datetime.max.replace(tzinfo=UTC)


class Books:
    """Everything an organisation holds.

    :meth:`advance` must be called before anything is read or written: it does what Lago's clock did
    since, so that an invoice counts exactly the events stored before it was cut.
    """

    def __init__(
        self, *, store: StoreName, version: tuple[int, ...], timezone: str, now: Callable[[], datetime]
    ) -> None:
        self.now = now
        self.catalogue = Catalogue(timezone)
        self.events = EventStore(store, version, self.catalogue.metrics)
        self.usage = UsageCache(self.events)
        self.subscriptions: list[Subscription] = []
        self.by_external_id: dict[str, list[Subscription]] = {}
        self.invoices: list[Invoice] = []
        self.fees: list[Fee] = []
        self._due: list[tuple[datetime, int, Subscription]] = []
        self._watched = 0  # those due at the same time act in the order in which they were watched
        self._periodic: dict[tuple[str, datetime, str], Invoice] = {}
        self._advance_series: set[tuple[str, str]] = set()
        self._advance_ids: set[str] = set()
        self._advance_fees: dict[tuple[str, str, datetime], list[Fee]] = {}
        self._advance_totals: dict[tuple[str, str, datetime, Bucket], tuple[Decimal, Decimal]] = {}

    # -- the clock -----------------------------------------------------------------------------

    def advance(self, now: datetime | None = None) -> datetime:
        """Do what was due until now: activate, end, rotate and bill, in the order of time. Returns now."""
        now = now or self.now()
        while self._due and self._due[0][0] <= now:
            due_at, _, row = heapq.heappop(self._due)
            if row.due_at == due_at:
                self._act(row, due_at)
        return now

    def _watch(self, row: Subscription) -> None:
        if row.due_at is not None:
            heapq.heappush(self._due, (row.due_at, self._watched, row))
            self._watched += 1

    def _act(self, row: Subscription, at: datetime) -> None:
        if row.status == "pending":
            self._activate(row, at)
        elif row.ending_at is not None and row.ending_at <= at:
            self._end(row, row.ending_at)
        elif row.pending_following() is not None:
            self._rotate(row, at)
        else:
            self._bill_due_period(row, at)
            row.plan_next_bill()
            self._watch(row)

    # -- subscriptions -------------------------------------------------------------------------

    def subscribe(self, given: dict[str, Any]) -> Subscription:
        """``POST /subscriptions``: create, or change the plan of the customer's active one.

        A plan that costs as much or more over a year is an upgrade (at once), a cheaper one a
        downgrade (at the period's end); the same plan returns the subscription as it is.

        Raises:
            LagoError: 422 per field; 404 ``plan_not_found``.
        """
        now = self.now()
        external_id = str(given.get("external_id") or "").strip()
        customer_id = str(given.get("external_customer_id") or "").strip()
        errors = {
            name: MANDATORY
            for name, value in (("external_id", external_id), ("external_customer_id", customer_id))
            if not value
        }
        if errors:
            raise unprocessable(errors)
        plan = self.catalogue.plans.get(str(given.get("plan_code")))
        if plan is None:
            raise not_found("plan")
        if given.get("billing_time") not in {None, *BILLING_TIMES}:
            raise unprocessable({"billing_time": INVALID})
        customer = self.catalogue.customers.get(customer_id)
        if customer is None:
            customer = self.catalogue.upsert_customer({"external_id": customer_id}, now)
        current = self._editable(external_id, customer)
        if current is not None:
            return self.change_plan(current, plan, given.get("name"))
        if self.active(external_id) is not None:
            raise unprocessable({"external_id": EXISTS})
        return self._create(customer, plan, external_id, given, now)

    def active(self, external_id: str) -> Subscription | None:
        """The active row of an external id."""
        rows = self.by_external_id.get(external_id, ())
        return next((row for row in rows if row.status == "active"), None)

    def row(self, external_id: str, status: str) -> Subscription | None:
        """The latest row of an external id in a status."""
        rows = [row for row in self.by_external_id.get(external_id, ()) if row.status == status]
        return max(
            rows, default=None, key=lambda row: (row.terminated_at or FOREVER, row.started_at or FOREVER)
        )

    def at(self, external_id: str, at: datetime) -> Subscription | None:
        """The row that holds an instant; of several the one still running."""
        rows = [row for row in self.by_external_id.get(external_id, ()) if row.holds(at)]
        return max(rows, default=None, key=lambda row: (row.terminated_at or FOREVER, row.started_at))

    def _editable(self, external_id: str, customer: Customer) -> Subscription | None:
        rows = [row for row in self.by_external_id.get(external_id, ()) if row.customer is customer]
        active = next((row for row in rows if row.status == "active"), None)
        waiting = next((row for row in rows if row.status == "pending" and row.previous is None), None)
        return active or waiting

    def _create(
        self, customer: Customer, plan: Plan, external_id: str, given: dict[str, Any], now: datetime
    ) -> Subscription:
        subscription_at = now
        if given.get("subscription_at") is not None:
            subscription_at = read_time("subscription_at", given["subscription_at"]).astimezone(UTC)
        ending_at = None
        if given.get("ending_at") is not None:
            ending_at = read_time("ending_at", given["ending_at"]).astimezone(UTC)
            if ending_at <= max(now, subscription_at):
                raise unprocessable({"ending_at": ["invalid_date"]})
        row = self._add_row(
            Subscription(
                lago_id=lago_uuid(0x5B, len(self.subscriptions) + 1),
                external_id=external_id,
                customer=customer,
                plan=plan,
                billing_time=given.get("billing_time") or "calendar",
                subscription_at=subscription_at,
                created_at=now,
                name=given.get("name") or None,
                ending_at=ending_at,
            )
        )
        if customer.currency is None:
            customer.currency = plan.amount_currency
        if subscription_at <= now:
            self._activate(row, subscription_at)
        else:
            row.due_at = subscription_at
            self._watch(row)
        return row

    def _add_row(self, row: Subscription) -> Subscription:
        self.subscriptions.append(row)
        self.by_external_id.setdefault(row.external_id, []).append(row)
        return row

    def _activate(self, row: Subscription, at: datetime) -> None:
        row.status, row.started_at = "active", at
        row.plan_first_bill()
        self._watch(row)
        for charge in row.plan.charges:
            if charge.pay_in_advance:
                self._advance_series.add((row.external_id, charge.metric.code))

    def change_plan(self, row: Subscription, plan: Plan, name: str | None = None) -> Subscription:
        """Upgrade, downgrade or nothing, by the price of the plan; the row that the API answers with."""
        if plan is row.plan:
            return row
        if row.status == "pending":
            row.plan = plan
            row.name = name or row.name
            return row
        if plan.yearly_amount_cents >= row.plan.yearly_amount_cents:
            return self.upgrade(row, plan, name)
        self.downgrade(row, plan, name)
        return row

    def upgrade(self, row: Subscription, plan: Plan, name: str | None = None) -> Subscription:
        """A new row with the same external id is active at once, the old one terminated and billed."""
        now = self.now()
        self._cancel_following(row)
        self._end(row, now)
        following = self._follow(row, plan, name)
        # Lago reads its clock again for the new row: the two never share an instant.
        self._activate(following, now + timedelta(milliseconds=1))
        return following

    def downgrade(self, row: Subscription, plan: Plan, name: str | None = None) -> Subscription:
        """A pending row that takes over when the period has been billed."""
        self._cancel_following(row)
        return self._follow(row, plan, name)

    def _follow(self, row: Subscription, plan: Plan, name: str | None) -> Subscription:
        following = Subscription(
            lago_id=lago_uuid(0x5B, len(self.subscriptions) + 1),
            external_id=row.external_id,
            customer=row.customer,
            plan=plan,
            billing_time=row.billing_time,
            subscription_at=row.subscription_at,
            created_at=self.now(),
            name=name or row.name,
            ending_at=row.ending_at,
            previous=row,
        )
        row.following = following
        return self._add_row(following)

    def _cancel_following(self, row: Subscription) -> None:
        following = row.pending_following()
        if following is not None:
            self._cancel(following, self.now())

    def _cancel(self, row: Subscription, at: datetime) -> None:
        row.status, row.canceled_at, row.due_at = "canceled", at, None

    def _rotate(self, row: Subscription, at: datetime) -> None:
        """End of the period of a downgraded row: bill it, then the new plan starts at the job's time.

        Between midnight and the job neither row counts events, as in Lago.
        """
        following = row.pending_following()
        if following is None or row.due_period is None:
            raise AssertionError("only a downgraded row rotates")
        self._bill_due_period(row, at)
        row.status, row.terminated_at, row.due_at = "terminated", at, None
        self._activate(following, at)

    def terminate(self, row: Subscription) -> Subscription:
        """``DELETE /subscriptions/{id}``: an active row is ended and billed, a pending one canceled."""
        if row.status == "pending":
            self._cancel(row, self.now())
            return row
        self._cancel_following(row)
        self._end(row, self.now())
        return row

    def _end(self, row: Subscription, at: datetime) -> None:
        # A period that ended minutes ago and waits for the hourly job is billed before its row ends.
        if row.due_period is not None and row.due_period.ends_at < at and row.due_at is not None:
            self._bill_due_period(row, at)
        row.status, row.terminated_at, row.due_at = "terminated", at, None
        begins, ends = row.bounds(row.period_at(at))
        self._bill(row, begins, ends, at, self._new_invoice(row.customer, row.plan.amount_currency, at))

    # -- billing -------------------------------------------------------------------------------

    def _bill_due_period(self, row: Subscription, at: datetime) -> None:
        if row.due_period is None:
            raise AssertionError("a row without a period is not due")
        begins, ends = row.bounds(row.due_period)
        # What a customer owes for several subscriptions at the same time stands in one invoice.
        key = (row.customer.lago_id, at, row.plan.amount_currency)
        invoice = self._periodic.get(key)
        if invoice is None:
            invoice = self._periodic[key] = self._new_invoice(row.customer, row.plan.amount_currency, at)
        self._bill(row, begins, ends, at, invoice)

    def _new_invoice(self, customer: Customer, currency: str, at: datetime) -> Invoice:
        number = len(self.invoices) + 1
        invoice = Invoice(
            lago_id=lago_uuid(0x17, number),
            number=f"SIM-0001-{customer.sequential_id:03d}-{number:03d}",
            customer=customer,
            currency=currency,
            created_at=at,
        )
        self.invoices.append(invoice)
        return invoice

    def _bill(
        self, row: Subscription, begins: datetime, ends: datetime, at: datetime, invoice: Invoice
    ) -> None:
        """Cut the invoice of a row's charges in arrears over a period; from here on it never changes."""
        period = BilledPeriod(row, invoice, begins, ends)
        row.billed.append(period)
        invoice.periods.append(period)
        for charge in row.plan.charges:
            if charge.pay_in_advance:
                continue
            counted = list(counted_events(self.events, row, charge, begins, ends, to_us(at)))
            fees: dict[Bucket, tuple[Fee]] = {}
            for line in usage_lines(charge, iter(counted)):
                if line.events_count:
                    fee = self._add_fee(row, charge, line, begins, ends, at, invoice)
                    period.fees.append(fee)
                    fees[line.filter_index, tuple(line.grouped_by.items())] = (fee,)
            for event, _ in counted:
                fee_of_event = fees[bucket_of(charge, event)]
                # Most events are counted once: they share one tuple.
                event.fees = (*event.fees, *fee_of_event) if event.fees else fee_of_event

    def _add_fee(
        self,
        row: Subscription,
        charge: Charge,
        line: UsageLine,
        begins: datetime,
        ends: datetime,
        at: datetime,
        invoice: Invoice | None,
        event: StoredEvent | None = None,
    ) -> Fee:
        fee = Fee(
            lago_id=lago_uuid(0xFE, len(self.fees) + 1),
            subscription=row,
            charge=charge,
            usage=line,
            begins=begins,
            ends=ends,
            created_at=at,
            invoice=invoice,
            event_transaction_id=None if event is None else event.transaction_id,
        )
        self.fees.append(fee)
        if invoice is not None:
            invoice.fees.append(fee)
        return fee

    # -- the job after storing -----------------------------------------------------------------

    def process(self, events: list[StoredEvent]) -> None:
        """What happens after 200: charges paid in advance are billed per event."""
        if not self._advance_series:
            return
        for event in events:
            if event.processed and (event.subscription, event.code) in self._advance_series:
                self._bill_in_advance(event)

    def _bill_in_advance(self, event: StoredEvent) -> None:
        """One fee per charge; an id that was billed before, on any subscription, is not billed again."""
        if event.transaction_id in self._advance_ids or event.subscription is None:
            return
        if not is_datetime(event.at_us):
            return
        at = from_us(event.at_us)
        row = self.at(event.subscription, at)
        value = event.value(self.catalogue.metrics[event.code].field_name, clickhouse=self.events.clickhouse)
        if row is None or value is None:
            return
        for charge in row.charges_of(event.code):
            if not charge.pay_in_advance:
                continue
            period = row.period_at(at)
            begins, ends = row.bounds(period)
            bucket = bucket_of(charge, event)
            key = (row.lago_id, charge.lago_id, period.starts_at, bucket)
            current, highest = self._advance_totals.get(key, (value * 0, None))
            units, current, highest = advance_units(current, highest, value)
            self._advance_totals[key] = (current, highest)
            cents = whole_cents(units * charge.amount(bucket[0]) * 100)
            line = UsageLine(value, units, 1, cents, bucket[0], dict(bucket[1]))
            now = self.now()
            invoice = (
                self._new_invoice(row.customer, row.plan.amount_currency, now) if charge.invoiceable else None
            )
            fee = self._add_fee(row, charge, line, begins, ends, now, invoice, event)
            event.fees = (*event.fees, fee)
            self._advance_fees.setdefault((row.lago_id, charge.lago_id, begins), []).append(fee)
            self._advance_ids.add(event.transaction_id)

    def _advance_lines(self, row: Subscription, charge: Charge, begins: datetime) -> list[UsageLine]:
        """Current usage of a charge paid in advance: what the fees of the period have charged."""
        tallied: dict[Bucket, UsageLine] = {}
        for fee in self._advance_fees.get((row.lago_id, charge.lago_id, begins), ()):
            bucket: Bucket = (fee.usage.filter_index, tuple(fee.usage.grouped_by.items()))
            line = tallied.setdefault(
                bucket, UsageLine(fee.usage.units * 0, fee.usage.units * 0, 0, 0, bucket[0], dict(bucket[1]))
            )
            line.signed_units += fee.usage.signed_units
            line.units += fee.usage.units
            line.events_count += 1
            line.amount_cents += fee.amount_cents
        return list(tallied.values()) or usage_lines(charge, iter(()))

    def current_lines(
        self, row: Subscription, charge: Charge, now: datetime
    ) -> tuple[datetime, datetime, list[UsageLine]]:
        """First and last instant of the current period, and what it holds so far (perhaps from the cache)."""
        begins, ends = row.bounds(row.period_at(now))
        if charge.pay_in_advance:
            return begins, ends, self._advance_lines(row, charge, begins)
        return begins, ends, self.usage.lines(row, charge, begins, ends, to_us(now))
