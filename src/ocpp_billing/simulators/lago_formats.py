"""How Lago prints and reads the scalars of its API: times, quantities, ids and error answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
FIRST_PYTHON_US = -62_135_596_800_000_000  # 0001-01-01
LAST_PYTHON_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z
LAST_POSTGRES_US = 9_224_318_015_999_999_999  # 294276-12-31, the end of PostgreSQL's timestamp


class LagoError(Exception):
    """An answer other than 200, in Lago's own envelope.

    Attributes:
        status: HTTP status.
        body: the JSON body.
    """

    def __init__(self, status: int, error: str, code: str | None = None, details: Any = None) -> None:
        super().__init__(f"{status} {error} {code} {details}")
        self.status = status
        self.body: dict[str, Any] = {"status": status, "error": error}
        if code is not None:
            self.body["code"] = code
        if details is not None:
            self.body["error_details"] = details


def unprocessable(details: Any) -> LagoError:
    """422 with ``error_details``: ``{field: [code]}``, ``{"<index>": {field: [code]}}`` or a plain string."""
    return LagoError(422, "Unprocessable Entity", "validation_errors", details)


def not_found(resource: str) -> LagoError:
    """404 of a resource, such as ``event`` → ``event_not_found``."""
    return LagoError(404, "Not Found", f"{resource}_not_found")


def missing_parameter(name: str) -> LagoError:
    """400 of a body without its root object."""
    return LagoError(400, f"BadRequest: param is missing or the value is empty or invalid: {name}")


def internal_error() -> LagoError:
    """500 as Rails answers when nothing rescued the exception."""
    return LagoError(500, "Internal Server Error")


def lago_uuid(kind: int, number: int) -> str:
    """A well-formed UUID that says what it names: kind of object and running number."""
    return f"{kind:08x}-0000-4000-8000-{number:012x}"


def to_us(at: datetime) -> int:
    """Microseconds since 1970 of an aware datetime."""
    return (at - EPOCH) // MICROSECOND


def is_datetime(at_us: int) -> bool:
    """Whether :func:`from_us` can tell the instant: the years 1 to 9999."""
    return FIRST_PYTHON_US <= at_us < (LAST_PYTHON_SECOND + 1) * 1_000_000


def from_us(at_us: int) -> datetime:
    """The aware datetime (UTC) of microseconds since 1970."""
    return EPOCH + at_us * MICROSECOND


def iso_seconds(at: datetime | None) -> str | None:
    """``2026-11-01T00:00:00Z``, fractions cut off, or None."""
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_milliseconds(at_us: int) -> str:
    """``2026-11-01T00:00:00.123Z``, cut (not rounded) to milliseconds.

    Also for the years beyond 9999 which a time in milliseconds, sent where seconds belong, becomes:
    Lago accepts those with 200.
    """
    second, fraction_us = divmod(at_us, 1_000_000)
    day_s = second % 86_400
    if 0 <= second <= LAST_PYTHON_SECOND:
        date_text = (EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%d")
    else:
        date_text = _civil_date(second // 86_400)
    clock = f"{day_s // 3600:02d}:{day_s % 3600 // 60:02d}:{day_s % 60:02d}"
    return f"{date_text}T{clock}.{fraction_us // 1000:03d}Z"


def _civil_date(days: int) -> str:
    """The proleptic Gregorian date of a day count since 1970, for any year."""
    # The calendar repeats every 400 years of 146,097 days, so the day is moved into Python's range.
    cycles, rest = divmod(days, 146_097)
    moved = EPOCH + timedelta(days=rest)
    return f"{moved.year + 400 * cycles:04d}-{moved:%m-%d}"


def units_text(value: Decimal) -> str:
    """A quantity as Ruby's BigDecimal prints it: plain, no needless zeros, at least one decimal."""
    text = format(value, "f")
    if "." not in text:
        return f"{'0' if text == '-0' else text}.0"
    text = text.rstrip("0")
    text = f"{text}0" if text.endswith(".") else text
    return "0.0" if text == "-0.0" else text


def read_timestamp_us(value: Any, *, binary_float: bool) -> int | None:
    """Microseconds since 1970 of an event's ``timestamp``, or None where Lago says ``invalid_format``.

    Args:
        value: seconds as an integer, a float or a numeric string. ISO 8601 and ``""`` are refused,
            milliseconds are taken for seconds.
        binary_float: before v1.48.0 the seconds went through a binary float, and what was cut to
            microseconds could end one lower.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        seconds = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    if not seconds.is_finite():
        return None
    if abs(seconds) > LAST_POSTGRES_US // 1_000_000:
        return LAST_POSTGRES_US + 1  # how far beyond makes no difference, and may be astronomical
    if binary_float:
        seconds = Decimal(float(seconds))
    return int((seconds * 1_000_000).to_integral_value(rounding="ROUND_FLOOR"))


def scalar_text(value: Any) -> str | None:
    """A permitted scalar as the string Rails stores; None for null, arrays and objects."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else None  # false is blank
    if isinstance(value, int | float):
        return str(value)
    return None


def read_iso_filter(name: str, value: str) -> datetime:
    """A filter such as ``timestamp_from``: ISO 8601 only.

    Raises:
        LagoError: 422 ``invalid_date``; also for a ``+`` that was sent without percent-encoding.
    """
    try:
        if value.isdigit():
            raise ValueError
        at = datetime.fromisoformat(value)
    except ValueError:
        raise unprocessable({name: ["invalid_date"]}) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def read_time(name: str, value: Any) -> datetime:
    """A time in a body, such as ``subscription_at``.

    Raises:
        LagoError: 422 ``invalid_date``.
    """
    if isinstance(value, datetime):
        return value
    return read_iso_filter(name, value if isinstance(value, str) else "")
