"""What became of events that were sent to Lago. Pure: status, headers and body in, a value out.

The rules come from Lago's behaviour from v1.30 to v1.51:

- A batch is taken whole or refused whole. A refusal names the guilty events by index; the others are
  *usually* not stored, but v1.32.4 to v1.38 stored them all the same. So an event that a refusal does not
  name is *unknown*, and is resent: Lago then stores it or answers ``value_already_exist``.
- ``value_already_exist`` proves that an event with that id exists, not that it is ours as it stands.
- Everything that leaves open whether Lago stored the events is :class:`Unknown`: resend the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from ocpp_billing.lago.answers import (
    UNREADABLE,
    as_words,
    on_one_line,
    redirect_target,
    retry_after_s,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ocpp_billing.lago.wire import UsageEvent

# Lago's ClickHouse store answers before it stores, and shows later what it has: what it does not show so
# long after it was sent, it never got.
SHOWN_WITHIN: Final = timedelta(minutes=10)

_ALREADY_EXISTS: Final = (("transaction_id", "value_already_exist"),)
_SIZE_REASONS: Final = ("too_many_events", "payload_too_large")
_NO_REASON: Final = "refused without a reason"


@dataclass(frozen=True, slots=True)
class Accepted:
    """Lago answered 200 and echoed every event. It will bill them only if the contract holds.

    Attributes:
        lago_ids: transaction id to Lago's id of the event; None on the ClickHouse store.
    """

    lago_ids: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class EventError:
    """Why Lago refused one event.

    Attributes:
        codes: pairs of field and Lago's error code, such as ``("timestamp", "invalid_format")``; empty
            where Lago gave a sentence only.
        text: the same in Lago's words, for a person; never empty.
    """

    codes: tuple[tuple[str, str], ...]
    text: str

    @property
    def already_exists(self) -> bool:
        """Whether the id being taken is the *only* objection: the event was stored before."""
        return self.codes == _ALREADY_EXISTS


@dataclass(frozen=True, slots=True)
class Rejected:
    """Lago refused the request for what it holds (422, or 413 from a proxy).

    Attributes:
        errors: by index in the batch. Events that are not named are to be resent (see the module).
        whole: reasons that name no event, in Lago's words (``events: too_many_events``). For a batch of
            one there is none: every reason is that event's.
    """

    errors: Mapping[int, EventError] = field(default_factory=dict)
    whole: tuple[str, ...] = ()

    @property
    def too_large(self) -> bool:
        """Whether a smaller batch is what Lago, or the proxy before it, asks for."""
        return any(reason in words for reason in _SIZE_REASONS for words in self.whole)


@dataclass(frozen=True, slots=True)
class Unauthorised:
    """401 or 403: no event will get through with this key. Keep the queue, pause, tell the operator."""

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class RateLimited:
    """429: nothing was stored; wait. ``retry_after_s`` is None where the answer does not say how long."""

    retry_after_s: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The request as such was refused (a redirect, 400, 404 and other 4xx): our fault or a wrong address.

    It says nothing about any event, and the next request would fare no better: stop, tell the operator.
    """

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Whether Lago stored the events is not known: read back, then send the same bytes again.

    Attributes:
        reason: what happened, for a person.
        retry_after_s: how long the answer asked to wait, or None.
        status: the HTTP status, or None where no answer arrived.
        nothing_sent: no connection came about, so nothing can have been stored.
    """

    reason: str
    retry_after_s: float | None = None
    status: int | None = None
    nothing_sent: bool = False


Outcome: TypeAlias = Accepted | Rejected | Unauthorised | RateLimited | Refused | Unknown


def classify(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    sent: Sequence[UsageEvent],
    *,
    now: datetime | None = None,
) -> Outcome:
    """What an answer to ``POST /events`` or ``POST /events/batch`` means. Never raises.

    Args:
        status: HTTP status, also one that no list knows (520).
        headers: of the answer; names in any case.
        body: of the answer, decompressed.
        sent: the events of the request, in order; one for ``POST /events``.
        now: to read an HTTP date in ``Retry-After``; the answer's own ``Date`` is preferred.
    """
    if 200 <= status < 300:
        return _accepted(status, body, sent)
    if status == 422:
        return _rejected(body, len(sent))
    wait_s = retry_after_s(status, headers, now)
    words = words_of(body)
    said = f"Lago answered {status}" + (f": {words}" if words else "")
    if status in {401, 403}:
        return Unauthorised(status, said)
    if status == 413:
        return _one_or_whole("payload_too_large", len(sent))
    if status == 429:
        return RateLimited(wait_s, said)
    if 300 <= status < 500 and status not in {408, 425}:
        target = redirect_target(status, headers)
        return Refused(status, said + (f", redirects to {target}" if target else ""))
    return Unknown(said, wait_s, status)


# -- 2xx ---------------------------------------------------------------------------------------------


class _Echo(Struct, frozen=True):
    transaction_id: str
    external_subscription_id: str | None = None
    code: str | None = None
    lago_id: str | None = None


class _Stored(Struct, frozen=True):
    events: list[_Echo] | None = None
    event: _Echo | None = None


_stored_decoder = msgspec.json.Decoder(_Stored)


def _accepted(status: int, body: bytes, sent: Sequence[UsageEvent]) -> Accepted | Unknown:
    """A 2xx counts only if it echoes what was sent: a proxy's or captive portal's 200 stored nothing."""
    try:
        stored = _stored_decoder.decode(body)
    except UNREADABLE:
        return Unknown(f"{status} without Lago's answer in it", status=status)
    echoed = stored.events if stored.events is not None else [stored.event] if stored.event else []
    if len(echoed) != len(sent) or {_identity(event) for event in echoed} != set(map(_identity, sent)):
        return Unknown(f"{status}, but the answer does not echo the events sent", status=status)
    return Accepted({event.transaction_id: event.lago_id for event in echoed})


def _identity(event: _Echo | UsageEvent) -> tuple[str, str | None, str | None]:
    return event.transaction_id, event.external_subscription_id, event.code


# -- 422 ---------------------------------------------------------------------------------------------


def _rejected(body: bytes, count: int) -> Rejected | Unknown:
    try:
        answer = msgspec.json.decode(body)
    except UNREADABLE:
        answer = None
    if not isinstance(answer, dict):
        return Unknown("Lago answered 422 without a reason that can be read", status=422)
    details = answer.get("error_details")
    if not isinstance(details, dict):
        return _one_or_whole(as_words(details) or words_of(body), count)
    errors = {}
    rest: dict[str, Any] = {}
    for key, value in details.items():
        index = _index(key, count)
        if index is None:
            rest[key] = value
        else:
            errors[index] = _event_error(value)
    if not rest and errors:
        return Rejected(errors)
    if not rest:
        return _one_or_whole(words_of(body), count)
    if count == 1:
        return Rejected({0: _event_error(details)})
    return Rejected(errors, tuple(on_one_line(f"{name}: {as_words(value)}") for name, value in rest.items()))


def _one_or_whole(reason: str, count: int) -> Rejected:
    """A reason that names no event: the batch's, or, when it was sent alone, the event's."""
    words = on_one_line(reason) or _NO_REASON
    return Rejected({0: EventError((), words)}) if count == 1 else Rejected(whole=(words,))


def _index(key: str, count: int) -> int | None:
    """The index that a key of ``error_details`` names, or None when it is the name of a field."""
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        return None
    index = int(key)
    return index if index < count and str(index) == key else None


def _event_error(value: object) -> EventError:
    """One event's error: fields to lists of codes, or a sentence (a failed expression)."""
    codes: list[tuple[str, str]] = []
    if isinstance(value, dict):
        for name, reasons in value.items():
            listed = reasons if isinstance(reasons, list) else [reasons]
            codes.extend((name, reason if isinstance(reason, str) else as_words(reason)) for reason in listed)
    return EventError(tuple(codes), on_one_line(as_words(value)) or _NO_REASON)
