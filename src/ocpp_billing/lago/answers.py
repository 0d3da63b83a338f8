"""What any answer of Lago says, delivery or not: its words, its error, how long it asks to wait. Pure."""

from __future__ import annotations

import email.utils
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ocpp_billing.lago import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_WAIT_S: Final = 3600.0
"""No answer makes us wait longer, however long it asks for (a proxy may send a date in place of seconds)."""

# RecursionError: nesting a thousand deep is no answer of Lago's either.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a body raises when it is not the JSON that was expected."""

_LONGEST_TEXT: Final = 500
_DEEPEST_WORDS: Final = 6
_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")


def error_of(
    status: int, headers: Mapping[str, str], body: bytes, base_url: str, now: datetime
) -> errors.AnswerError:
    """The error that an answer other than 2xx is, with advice for the operator.

    ``base_url`` is Lago's address without ``/api/v1``; ``now`` is there to read a date to wait for.
    """
    words, code = words_of(body), _code(body)
    said = f" Lago says: {words}." if words else ""
    common: dict[str, Any] = {"status": status, "code": code, "words": words}
    if status == 401:
        return errors.Unauthorised(
            f"Lago at {base_url} refuses the API key (401). Set LAGO_API_KEY to a key of the "
            "organisation to bill in, and check that LAGO_API_URL is the Lago that gave it.",
            **common,
        )
    if status == 403:
        return errors.Forbidden(
            f"Lago does not allow this with this API key (403).{said} Give the key of LAGO_API_KEY the "
            "permission in Lago.",
            **common,
        )
    if 300 <= status < 400 or (status == 404 and code in {None, "resource_not_found"}):
        target = redirect_target(status, headers)
        where = f" It redirects to {target}." if target else ""
        return errors.WrongAddress(
            f"Lago's API is not at {base_url}/api/v1 (HTTP {status}).{where} Set LAGO_API_URL to the "
            "final address of Lago's API.",
            **common,
        )
    if status == 404:
        return errors.NotFound(f"Lago has no such thing (404).{said}", **common)
    if status == 405 and code == "no_active_subscription":
        return errors.NoActiveSubscription("The subscription is not active in Lago (405).", **common)
    if status == 422:
        return errors.Unprocessable(f"Lago refuses this (422).{said}", **common)
    if status == 429:
        wait_s = retry_after_s(status, headers, now)
        return errors.RateLimited(
            "Lago's rate limit is reached (429). It is retried later by itself.",
            **common,
            retry_after_s=wait_s,
        )
    if status == 408 or status >= 500:
        return errors.ServerFault(
            f"Lago at {base_url} fails (HTTP {status}).{said} It is retried later by itself; if it "
            "lasts, look into Lago's log.",
            **common,
        )
    return errors.BadRequest(f"Lago did not understand the request (HTTP {status}).{said}", **common)


def words_of(body: bytes) -> str:
    """What an error answer says, in its own words, on one line and shortened; empty when unreadable.

    HTML is a proxy's page: its tags would only bury the status, so it says nothing.
    """
    try:
        answer = msgspec.json.decode(body)
    except UNREADABLE:
        return ""
    if not isinstance(answer, dict):
        return on_one_line(answer if isinstance(answer, str) else "")
    details = answer.get("error_details")
    parts = [answer.get("error"), answer.get("code"), as_words(details) if details else None]
    return on_one_line(", ".join(part for part in parts if isinstance(part, str) and part))


def redirect_target(status: int, headers: Mapping[str, str]) -> str:
    """Where a redirect points to, or "". Without its query: a sign-in page's may carry secrets."""
    location = next((value for name, value in headers.items() if name.lower() == "location"), "")
    return on_one_line(location.partition("?")[0]) if 300 <= status < 400 else ""


def retry_after_s(status: int, headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """How long an answer asks to wait, in seconds (0 to :data:`LONGEST_WAIT_S`), or None.

    ``Retry-After`` is seconds or an HTTP date. ``X-RateLimit-Reset`` is seconds until the limit is
    renewed; Lago Cloud sends it with every answer, so it counts only with 429 or when nothing remains.
    """
    lowered = {name.lower(): value.strip() for name, value in headers.items()}
    waits = [_wait_of(lowered.get("retry-after", ""), lowered.get("date", ""), now)]
    if status == 429 or lowered.get("x-ratelimit-remaining") == "0":
        waits.append(_seconds(lowered.get("x-ratelimit-reset", "")))
    asked = [wait for wait in waits if wait is not None]
    return min(max(0.0, *asked), LONGEST_WAIT_S) if asked else None


def as_words(value: object, depth: int = 0) -> str:
    """Any JSON as words: ``timestamp: invalid_format; code: value_is_mandatory``."""
    if value is None:
        return ""
    if not isinstance(value, (dict, list)):
        return str(value)
    if depth == _DEEPEST_WORDS:
        return "…"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {as_words(inner, depth + 1)}" for name, inner in value.items())
    return ", ".join(as_words(inner, depth + 1) for inner in value)


def on_one_line(text: str) -> str:
    """A text for a message: one line, at most 500 characters."""
    line = " ".join(text.replace("\x00", " ").split())
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"


def _code(body: bytes) -> str | None:
    try:
        answer = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    code = answer.get("code") if isinstance(answer, dict) else None
    return code if isinstance(code, str) else None


def _seconds(text: str) -> float | None:
    return float(text) if _SECONDS.fullmatch(text) else None


def _wait_of(text: str, date: str, now: datetime | None) -> float | None:
    """``Retry-After``: seconds, or the distance of a date from the answer's own clock or else ours."""
    if (seconds := _seconds(text)) is not None:
        return seconds
    until, since = _http_date(text), _http_date(date) or now
    return (until - since).total_seconds() if until and since else None


def _http_date(text: str) -> datetime | None:
    try:
        read = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return read if read.tzinfo else read.replace(tzinfo=UTC)
