"""Billing periods as Lago cuts them: by calendar or anniversary, in the customer's time zone.

Pure. The 29th to 31st are clamped to the length of each month, so that periods never overlap.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

MONTHS_BY_INTERVAL = {"monthly": 1, "quarterly": 3, "semiannual": 6, "yearly": 12}
INTERVALS = ("weekly", *MONTHS_BY_INTERVAL)
BILLING_TIMES = ("calendar", "anniversary")
BILLING_MINUTE = 10  # Lago's clock starts the hourly biller at :10


@dataclass(frozen=True, slots=True)
class Period:
    """One billing period: both ends inclusive, in UTC; ``billing_day`` is the local day after it."""

    starts_at: datetime
    ends_at: datetime
    billing_day: date
    zone: ZoneInfo


def local_midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a local day, in UTC; a midnight that a clock change skips is what it became."""
    return datetime.combine(day, time(), tzinfo=zone).astimezone(UTC)


def period_containing(
    at: datetime, *, interval: str, billing_time: str, anchor: date, zone: ZoneInfo
) -> Period:
    """The period in which an instant lies.

    Args:
        at: an aware datetime.
        interval: one of :data:`INTERVALS`, of the plan.
        billing_time: ``calendar`` (Mondays, first of the month, of the quarter, …) or ``anniversary``.
        anchor: local day of the subscription's ``subscription_at``; matters for ``anniversary``.
        zone: the customer's applicable time zone.
    """
    day = at.astimezone(zone).date()
    first, after = _days(day, interval, anchor if billing_time == "anniversary" else None)
    return Period(
        starts_at=local_midnight(first, zone),
        ends_at=local_midnight(after, zone) - timedelta(microseconds=1),
        billing_day=after,
        zone=zone,
    )


def _days(day: date, interval: str, anchor: date | None) -> tuple[date, date]:
    """First day of the period around ``day``, and first day of the next."""
    if interval == "weekly":
        first_weekday = anchor.weekday() if anchor else calendar.MONDAY
        first = day - timedelta(days=(day.weekday() - first_weekday) % 7)
        return first, first + timedelta(days=7)
    step = MONTHS_BY_INTERVAL[interval]
    anchor = anchor or date(2000, 1, 1)
    apart = (day.year * 12 + day.month) - (anchor.year * 12 + anchor.month)
    months = apart // step * step
    first = _add_months(anchor, months)
    if first > day:
        months -= step
        first = _add_months(anchor, months)
    return first, _add_months(anchor, months + step)


def _add_months(day: date, months: int) -> date:
    year, month0 = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month0 + 1, min(day.day, calendar.monthrange(year, month0 + 1)[1]))


def billing_instant(period: Period, not_before: datetime) -> datetime | None:
    """When the hourly job bills a period: the first :10 of its billing day, not before the row existed.

    None when the billing day was over by then: such a period is never billed (a subscription that was
    back-dated over several periods).
    """
    begins = local_midnight(period.billing_day, period.zone)
    tick = _next_tick(max(begins, not_before))
    over = local_midnight(period.billing_day + timedelta(days=1), period.zone)
    return tick if tick < over else None


def _next_tick(at: datetime) -> datetime:
    tick = at.astimezone(UTC).replace(minute=BILLING_MINUTE, second=0, microsecond=0)
    return tick if tick >= at else tick + timedelta(hours=1)
