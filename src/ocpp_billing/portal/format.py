"""How numbers and times are written on every page. Pure; the words go through gettext."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from ocpp_billing.energy import say_kwh

if TYPE_CHECKING:
    from datetime import datetime, timedelta

MINUS = "\N{MINUS SIGN}"
_RECENT_S = 24 * 3600


def kwh(energy_wh: int) -> str:
    """Integer Wh as kWh, exactly: three decimals and thousands separators, ``12,345.678``."""
    return say_kwh(energy_wh).replace("-", MINUS)


def count(number: int) -> str:
    """A number of things with thousands separators: ``1,204``."""
    return f"{number:,}".replace("-", MINUS)


def duration(lasted: timedelta) -> str:
    """How long something took, in the two units that matter: ``0.4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    tenths = max(0, round(lasted.total_seconds() * 10))
    if tenths < 100:
        return _("%(n)s s") % {"n": f"{tenths // 10}.{tenths % 10}"}
    seconds = tenths // 10
    if seconds < 60:
        return _("%(n)s s") % {"n": seconds}
    if seconds < 3600:
        return _("%(n)s min %(s)s s") % {"n": seconds // 60, "s": seconds % 60}
    if seconds < 48 * 3600:
        return _("%(n)s h %(m)s min") % {"n": seconds // 3600, "m": seconds % 3600 // 60}
    return _("%(n)s days") % {"n": seconds // 86400}


def age(since: datetime, now: datetime) -> str:
    """How long ago, in one unit, rounded down: ``12 s``, ``5 min``, ``8 d``; the future is ``0 s``."""
    seconds = max(0, int((now - since).total_seconds()))
    unit_s, text = next((unit for unit in age_units() if seconds >= unit[0]), age_units()[-1])
    return text % {"n": seconds // unit_s}


def age_units() -> list[tuple[int, str]]:
    """The units of :func:`age`, longest first: how many seconds each has, and how so many of it are said."""
    return [(86400, _("%(n)s d")), (3600, _("%(n)s h")), (60, _("%(n)s min")), (1, _("%(n)s s"))]


def instant(at: datetime, now: datetime) -> str:
    """An instant in words: relative within a day (``5 min ago``, ``in 3 min``), else :func:`stamp`."""
    distance_s = (now - at).total_seconds()
    if abs(distance_s) >= _RECENT_S:
        return stamp(at, now)
    if distance_s < 0:
        return _("in %(age)s") % {"age": age(now, at)}
    return _("%(age)s ago") % {"age": age(at, now)}


def stamp(at: datetime, now: datetime) -> str:
    """An instant in the organisation's zone: ``14:15`` today, ``21 Nov, 14:15`` this year."""
    local, today = timezone.localtime(at), timezone.localtime(now)
    if local.date() == today.date():
        return date_format(local, "H:i")
    return date_format(local, "j M, H:i" if local.year == today.year else "j M Y, H:i")


def utc(at: datetime) -> str:
    """The absolute instant, for the hover text: ``2026-11-23 13:15:00 UTC``."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
