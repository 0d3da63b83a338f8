"""Rules in words, with the numbers in place: ``average power 9.4 kW ≤ 400 kW``."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ocpp_billing.billing.rules import Rule
from ocpp_billing.portal.decision_words import in_peoples_units
from ocpp_billing.portal.format import duration, kwh

if TYPE_CHECKING:
    from django.utils.functional import Promise

    from ocpp_billing.billing.explain import Check

LABELS: dict[Rule, str | Promise] = {
    Rule.IDENTITY: gettext_lazy("Identity"),
    Rule.START_KNOWN: gettext_lazy("Start time"),
    Rule.STOP_AFTER_START: gettext_lazy("Order of times"),
    Rule.START_NOT_AHEAD: gettext_lazy("Clock at the start"),
    Rule.STOP_NOT_AHEAD: gettext_lazy("Clock at the stop"),
    Rule.CLOCK_NOT_RESET: gettext_lazy("Clock among its neighbours"),
    Rule.REGISTERS_RISE: gettext_lazy("Meter registers"),
    Rule.ENERGY: gettext_lazy("Energy"),
    Rule.DURATION: gettext_lazy("Duration"),
    Rule.POWER: gettext_lazy("Average power"),
    Rule.OVERLAP: gettext_lazy("Overlap"),
    Rule.MANUAL_STOP: gettext_lazy("Who stopped it"),
    Rule.SOME_ENERGY: gettext_lazy("Some energy"),
    Rule.MINIMUM: gettext_lazy("Minimum"),
    Rule.GO_LIVE: gettext_lazy("Billing begun"),
    Rule.ELSEWHERE: gettext_lazy("Other sources"),
}


def check_says(check: Check) -> str:
    """What a rule found, with its numbers and how they stand to its limit."""
    numbers = _with_numbers(check)
    if numbers is not None:
        return numbers
    if check.verdict is not None:
        return in_peoples_units(check.verdict.says)
    return _without_numbers(check)


def _with_numbers(check: Check) -> str | None:  # noqa: C901, PLR0911 - a table
    measured, limit, passed = check.measured, check.limit, check.passed
    match check.rule, measured, limit:
        case Rule.ENERGY, int(), Decimal():
            return f"{kwh(measured)} kWh {'≤' if passed else '>'} {_kwh(limit)} kWh"
        case Rule.MINIMUM, int(), Decimal():
            return f"{kwh(measured)} kWh {'≥' if passed else '<'} {_kwh(limit)} kWh"
        case Rule.POWER, Decimal(), Decimal():
            return f"{_plain(measured)} kW {'≤' if passed else '>'} {_plain(limit)} kW"
        case Rule.DURATION, timedelta(), timedelta():
            return f"{_exact(measured, limit)} {'≤' if passed else '>'} {_exact(limit, measured)}"
        case Rule.REGISTERS_RISE | Rule.SOME_ENERGY, int(), int() if passed or measured:
            sign = {Rule.REGISTERS_RISE: ("≥", "<"), Rule.SOME_ENERGY: ("≠", "=")}[check.rule][not passed]
            return _("stop less start = %(energy)s kWh %(sign)s 0") % {"energy": kwh(measured), "sign": sign}
        case Rule.START_NOT_AHEAD | Rule.STOP_NOT_AHEAD, timedelta(), timedelta():
            return _ahead(measured, limit, passed=passed)
        case Rule.CLOCK_NOT_RESET, timedelta(), timedelta() if measured > timedelta():
            return _("%(lag)s before the latest start among lower ids %(sign)s %(limit)s") % {
                "lag": _exact(measured, limit),
                "sign": "≤" if passed else ">",
                "limit": _exact(limit, measured),
            }
        case Rule.MANUAL_STOP, int(), int() if passed:
            return _("stopped by hand; the evidence differs by %(energy)s kWh ≤ %(limit)s kWh") % {
                "energy": kwh(measured),
                "limit": kwh(limit),
            }
        case Rule.STOP_AFTER_START, timedelta(), _limit if passed:
            return _("stopped %(time)s after it started") % {"time": duration(measured)}
        case Rule.GO_LIVE, timedelta(), _limit if passed:
            return _("stopped %(time)s after billing began") % {"time": duration(measured)}
    return None


def _ahead(measured: timedelta, limit: timedelta, *, passed: bool) -> str:
    if measured <= timedelta():
        return _("%(time)s before we first saw it") % {"time": duration(-measured)}
    return _("%(time)s after we first saw it %(sign)s %(limit)s") % {
        "time": _exact(measured, limit),
        "sign": "≤" if passed else ">",
        "limit": _exact(limit, measured),
    }


def _without_numbers(check: Check) -> str:
    """Of a rule that has nothing against it and compares nothing."""
    return {
        Rule.IDENTITY: _("tag and transaction are who they were"),
        Rule.START_KNOWN: _("known"),
        Rule.OVERLAP: _("no other session claims the same time and meter readings"),
        Rule.MANUAL_STOP: _("the charge box itself, not a person"),
        Rule.CLOCK_NOT_RESET: _("not before the latest start among lower ids"),
        Rule.POWER: _("no time passed and no energy flowed"),
    }[check.rule]


def _kwh(wh: Decimal) -> str:
    return _plain(wh / 1000)


def _plain(amount: Decimal) -> str:
    text = f"{amount:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _exact(length: timedelta, other: timedelta) -> str:
    """A length in words; to the microsecond where rounding would make it look like the other."""
    return str(length) if length != other and duration(length) == duration(other) else duration(length)
