"""What Lago would bill, as last read: subscriptions of customers, plans' charges, the metric.

Read from Lago when it is needed and too old, and kept in the ledger, where delivery checks it once more
when it claims events.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import connection, transaction

from ocpp_billing.database import bulk_cursor
from ocpp_billing.effects import effect
from ocpp_billing.lago.contract import PlanCharge, SubscriptionRow
from ocpp_billing.lago.errors import LagoError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.wire import BillableMetric, Subscription

# How old an answer may be before a subscription is asked for again.
FRESH_FOR = timedelta(minutes=5)
# Above so many customers one paged read of everything is cheaper than a call each.
READ_ALL_ABOVE = 50
SUMMING = "sum_agg"
# Since this release Lago stores nothing of a batch that it refuses. What older ones store of it all the
# same is counted in arrears, and never charged in advance.
BATCHES_WHOLE_SINCE = (1, 39)


@dataclass(slots=True)
class LagoDirectory:
    """Lago's subscriptions, plans and metric during one run.

    Attributes:
        client: to ask with.
        metric_code: the billable metric of our events.
    """

    client: LagoClient
    metric_code: str
    _charges: dict[str, PlanCharge | None] = field(default_factory=dict)
    _metric: BillableMetric | None = None
    _metric_read: bool = False
    _promised: dict[str, int] = field(default_factory=dict)
    _stores_parts: bool | None = None

    def metric(self) -> BillableMetric | None:
        """The billable metric, or None where Lago has none of that code."""
        if not self._metric_read:
            self._metric = self.client.metric(self.metric_code)
            self._metric_read = True
        return self._metric

    @property
    def field_name(self) -> str | None:
        """The property that the metric sums; None where nothing we send would be summed."""
        metric = self.metric()
        if metric is None or metric.aggregation_type != SUMMING:
            return None
        return metric.field_name

    def charges(self, rows: Iterable[SubscriptionRow]) -> dict[str, PlanCharge]:
        """How the plans of these rows charge the metric; plans that do not are absent."""
        return self.charges_of_plans({row.plan_code for row in rows})

    def charges_of_plans(self, codes: Iterable[str]) -> dict[str, PlanCharge]:
        """How these plans charge the metric; plans that do not are absent."""
        if self.field_name is None:
            return {}
        found: dict[str, PlanCharge] = {}
        for code in codes:
            if code not in self._charges:
                self._charges[code] = self._read_charge(code)
            charge = self._charges[code]
            if charge is not None:
                found[code] = charge
        return found

    def _read_charge(self, plan_code: str) -> PlanCharge | None:
        plan = self.client.plan(plan_code)
        charges = () if plan is None else plan.charges_on(self.metric_code)
        if not charges:
            return None
        return PlanCharge(pay_in_advance=any(charge.pay_in_advance for charge in charges))

    def stores_parts_of_batches(self) -> bool:
        """Whether this Lago may store a part of a batch that it refuses; True where it does not say."""
        if self._stores_parts is None:
            try:
                version = self.client.health().version or ""
            except LagoError:
                version = ""
            said = re.match(r"v?(\d+)\.(\d+)", version)
            self._stores_parts = said is None or (int(said[1]), int(said[2])) < BATCHES_WHOLE_SINCE
        return self._stores_parts

    def counted_wh(self, row: SubscriptionRow) -> int | None:
        """What Lago counts of the metric in the row's current period, in Wh, cut; None = it does not say."""
        try:
            usage = self.client.current_usage(row.external_customer_id, row.external_id, self.metric_code)
        except LagoError:
            return None
        lines = usage.of_metric(self.metric_code)
        if not lines or (row.period_from is not None and usage.from_datetime < row.period_from):
            return None
        return int(lines[0].units * 1000)

    def promise(self, row: SubscriptionRow, energy_wh: int) -> None:
        """Remember a negative event that was decided in this run: Lago does not count it yet."""
        self._promised[row.lago_id] = self.promised_wh(row) + energy_wh

    def promised_wh(self, row: SubscriptionRow) -> int:
        """The sum of what was promised to this row in this run, in Wh, not positive."""
        return self._promised.get(row.lago_id, 0)

    def rows_of(self, customers: Iterable[str], now: datetime) -> dict[str, list[SubscriptionRow]]:
        """Every subscription row of these customers, in every status, not older than :data:`FRESH_FOR`."""
        wanted = set(customers)
        rows, fresh = _load(wanted, now - FRESH_FOR)
        stale = wanted - fresh
        if stale:
            self.refresh(stale, now)
            rows, _ = _load(wanted, now - FRESH_FOR)
        return rows

    def refresh(self, customers: set[str], now: datetime) -> None:
        """Ask Lago for the subscriptions of these customers now, and keep the answer."""
        if len(customers) > READ_ALL_ABOVE:
            answer = [row for row in self.client.subscriptions() if row.external_customer_id in customers]
            _store(customers, answer, now)
            return
        for customer in sorted(customers):
            _store({customer}, list(self.client.subscriptions(external_customer_id=customer)), now)


def row_of(row: Subscription) -> SubscriptionRow:
    """What decisions need of a subscription as Lago shows it."""
    return SubscriptionRow(
        lago_id=row.lago_id,
        external_id=row.external_id,
        external_customer_id=row.external_customer_id,
        plan_code=row.plan_code,
        status=row.status,
        started_at=row.started_at,
        terminated_at=row.terminated_at,
        period_from=row.current_billing_period_started_at,
        period_to=row.current_billing_period_ending_at,
    )


def _store(customers: set[str], rows: Sequence[Subscription], now: datetime) -> None:
    """Replace what is known of these customers by what Lago just said."""
    with effect("db commit subscriptions"), transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany(
            _UPSERT_ROW,
            [
                (
                    row.lago_id,
                    row.external_id,
                    row.external_customer_id,
                    row.lago_customer_id,
                    row.plan_code,
                    row.status,
                    row.name,
                    row.started_at,
                    row.terminated_at,
                    row.current_billing_period_started_at,
                    row.current_billing_period_ending_at,
                    now,
                )
                for row in rows
            ],
        )
        cursor.execute(
            "DELETE FROM lago_subscription WHERE external_customer_id = ANY(%s) AND read_at < %s",
            [list(customers), now],
        )
        cursor.executemany(_UPSERT_CUSTOMER, [(customer, now) for customer in sorted(customers)])


def _load(customers: set[str], since: datetime) -> tuple[dict[str, list[SubscriptionRow]], set[str]]:
    """What is known of these customers, and whose of it was read after ``since``."""
    rows: dict[str, list[SubscriptionRow]] = {customer: [] for customer in customers}
    with bulk_cursor() as cursor:
        cursor.execute(_SELECT_ROWS, [list(customers)])
        for values in cursor.fetchall():
            row = SubscriptionRow(*values)
            rows[row.external_customer_id].append(row)
        cursor.execute(
            "SELECT external_id FROM lago_customer_read WHERE external_id = ANY(%s) AND read_at >= %s",
            [list(customers), since],
        )
        fresh = {customer for (customer,) in cursor.fetchall()}
    return rows, fresh


_UPSERT_ROW = """
INSERT INTO lago_subscription (
    lago_id, external_id, external_customer_id, lago_customer_id, plan_code, status, name,
    started_at, terminated_at, period_from, period_to, read_at
) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (lago_id) DO UPDATE SET
    external_id = EXCLUDED.external_id, external_customer_id = EXCLUDED.external_customer_id,
    lago_customer_id = EXCLUDED.lago_customer_id,
    plan_code = EXCLUDED.plan_code, status = EXCLUDED.status, name = EXCLUDED.name,
    started_at = EXCLUDED.started_at, terminated_at = EXCLUDED.terminated_at,
    period_from = EXCLUDED.period_from, period_to = EXCLUDED.period_to, read_at = EXCLUDED.read_at
"""

_UPSERT_CUSTOMER = """
INSERT INTO lago_customer_read (external_id, read_at) VALUES (%s, %s)
ON CONFLICT (external_id) DO UPDATE SET read_at = EXCLUDED.read_at
"""

_SELECT_ROWS = """
SELECT lago_id, external_id, external_customer_id, plan_code, status,
    started_at, terminated_at, period_from, period_to
FROM lago_subscription WHERE external_customer_id = ANY(%s) ORDER BY started_at, lago_id
"""
