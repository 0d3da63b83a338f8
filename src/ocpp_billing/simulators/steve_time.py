"""Times as StEvE writes and reads them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache

DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# What the two Joda parsers take, as far as anybody sends it: a date with an optional time.
_DATE_TIME = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d{1,2})(?:-(?P<day>\d{1,2}))?)?"
    r"(?:T(?:(?P<hour>\d{1,2})(?::(?P<minute>\d{1,2})(?::(?P<second>\d{1,2})(?:[.,](?P<fraction>\d{1,9}))?)?)?)?"
    r"(?P<zone>Z|[+-]\d{2}(?::?\d{2})?)?)?",
)


@lru_cache(maxsize=4096)
def _day(number: int) -> str:
    return (_EPOCH + timedelta(days=number)).strftime("%Y-%m-%dT")


def iso_ms(at_ms: int) -> str:
    """``2026-11-22T20:49:29.000Z``: UTC, milliseconds."""
    day, rest = divmod(at_ms, DAY_MS)
    seconds, ms = divmod(rest, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{_day(day)}{hour:02d}:{minute:02d}:{second:02d}.{ms:03d}Z"


def parse_ms(text: str, *, local: bool, zone_required: bool = False) -> int:
    """Milliseconds since 1970 of a date or date-time.

    Args:
        text: as sent; without a zone it is UTC.
        local: a zone is an error (≤3.7).
        zone_required: a date without time and zone is an error (CSV report).

    Raises:
        ValueError: when the release cannot read it.
    """
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"not a date-time: {text!r}")
    zone = match["zone"]
    if (zone and local) or (zone_required and (zone is None or match["minute"] is None)):
        raise ValueError(f"zone not as expected: {text!r}")
    if zone and match["hour"] is None and text.endswith("TZ"):
        raise ValueError(f"not a date-time: {text!r}")
    ms = int(((match["fraction"] or "") + "000")[:3])
    moment = datetime(
        int(match["year"]),
        int(match["month"] or 1),
        int(match["day"] or 1),
        int(match["hour"] or 0),
        int(match["minute"] or 0),
        int(match["second"] or 0),
        tzinfo=_zone(zone),
    )
    return (moment - _EPOCH) // timedelta(milliseconds=1) + ms


def _zone(text: str | None) -> timezone:
    if text is None or text == "Z":
        return UTC
    sign = -1 if text[0] == "-" else 1
    digits = text[1:].replace(":", "").ljust(4, "0")
    return timezone(sign * timedelta(hours=int(digits[:2]), minutes=int(digits[2:])))
