"""``GET /transactions``: what a release makes of the parameters, and which rows it finds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from ocpp_billing.simulators.steve_central import FIRST_STORABLE_MS, LAST_STORABLE_MS
from ocpp_billing.simulators.steve_store import UNSET, collation_key
from ocpp_billing.simulators.steve_time import DAY_MS, parse_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocpp_billing.simulators.server import Request
    from ocpp_billing.simulators.steve_release import Release
    from ocpp_billing.simulators.steve_store import SteveStore

MAX_INT = 2**31 - 1
LAST_DAYS = {"LAST_10": 10, "LAST_30": 30, "LAST_90": 90}
PERIODS = ("ALL", "TODAY", *LAST_DAYS, "FROM_TO")


class BadParameterError(Exception):
    """The parameters do not bind or do not make sense; the message is what StEvE says."""

    def __init__(self, message: str = "Error understanding the request") -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class TransactionQuery:
    """A query as the release understood it; empty sets filter nothing.

    ``texts`` of charge boxes and tags are collation keys; ``from_ms`` and ``to_ms`` are both included.
    """

    pks: frozenset[int]
    charge_boxes: frozenset[str]
    id_tags: frozenset[str]
    users: frozenset[int]
    connector_id: int | None
    type: str
    period: str
    from_ms: int | None
    to_ms: int | None


class Window(NamedTuple):
    """Rows whose start or stop lies in ``first_ms … last_ms``, both included."""

    field: Literal["start", "stop"]
    first_ms: int
    last_ms: int


# -- binding -----------------------------------------------------------------------------------


def bind(request: Request, release: Release) -> TransactionQuery:
    """The query of a request.

    Unknown parameters are ignored, and so are known ones that the release does not have yet. An empty
    value counts as absent.

    Raises:
        BadParameterError: StEvE would answer 400.
    """
    types = ("ALL", "ACTIVE", "STOPPED") if release.stopped_type else ("ALL", "ACTIVE")
    first, last = _date(request, "from", release), _date(request, "to", release)
    query = TransactionQuery(
        pks=_integers(request, "transactionPk", release),
        charge_boxes=_texts(request, "chargeBoxId", release),
        id_tags=_texts(request, "ocppIdTag", release),
        users=_integers(request, "userId", release) if release.user_filter else frozenset(),
        connector_id=as_integer(request.first("connectorId")) if release.connector_filter else None,
        type=_choice(request, "type", types),
        period=_choice(request, "periodType", PERIODS),
        from_ms=first,
        to_ms=last,
    )
    if query.period == "FROM_TO" and (first is None or last is None):
        raise BadParameterError
    # Checked whenever both are there, also where the period does not use them.
    if first is not None and last is not None and last <= first:
        raise BadParameterError
    if release.list_filters and any(user < 1 for user in query.users):
        raise BadParameterError
    if as_boolean(request.first("returnCSV"), default=False):
        raise BadParameterError("returnCSV=true is not supported for API calls")
    return query


def _choice(request: Request, name: str, choices: tuple[str, ...]) -> str:
    text = request.first(name) or "ALL"
    if text not in choices:
        raise BadParameterError
    return text


def _date(request: Request, name: str, release: Release) -> int | None:
    text = request.first(name)
    if not text:
        return None
    try:
        return parse_ms(text, local=release.local_dates)
    except ValueError as error:
        raise BadParameterError from error


def as_integer(text: str | None) -> int | None:
    """A Java ``int``, or None when absent."""
    if text is None or not text.strip():
        return None
    digits = text.strip()
    if not re.fullmatch(r"[+-]?[0-9]+", digits):
        raise BadParameterError
    number = int(digits)
    if not -MAX_INT - 1 <= number <= MAX_INT:
        raise BadParameterError
    return number


def _values(request: Request, name: str) -> list[str]:
    """The values of a list parameter: one value is split at its commas, several are taken as they are."""
    values = request.all(name)
    return [part.strip() for part in values[0].split(",")] if len(values) == 1 else values


def _integers(request: Request, name: str, release: Release) -> frozenset[int]:
    """≥3.11: a list without blank places; before: one integer, the first of several, no comma."""
    texts = _values(request, name) if release.list_filters else request.all(name)[:1]
    if texts == [""]:
        return frozenset()
    numbers = frozenset(as_integer(text) for text in texts)
    given = frozenset(number for number in numbers if number is not None)
    if release.list_filters and given != numbers:
        raise BadParameterError
    return given


def _texts(request: Request, name: str, release: Release) -> frozenset[str]:
    """≥3.11: a list; before, several values are joined by commas into one (Spring's conversion)."""
    texts = _values(request, name) if release.list_filters else [",".join(request.all(name))]
    return frozenset(collation_key(text) for text in texts if text)


def as_boolean(text: str | None, *, default: bool) -> bool:
    """A Java ``boolean`` as Spring reads it."""
    if not text:
        return default
    word = text.strip().lower()
    if word in {"true", "on", "yes", "1"}:
        return True
    if word in {"false", "off", "no", "0"}:
        return False
    raise BadParameterError


def energy_values_only(request: Request) -> bool:
    """``energyValuesOnly`` of the details, true by default.

    Raises:
        BadParameterError: for what is not a boolean.
    """
    text = request.first("energyValuesOnly")
    try:
        return as_boolean(text, default=True)
    except BadParameterError as error:
        raise BadParameterError(
            "Method parameter 'energyValuesOnly': Failed to convert value of type 'java.lang.String' "
            f"to required type 'boolean'; Invalid boolean value [{text}]"
        ) from error


# -- finding -----------------------------------------------------------------------------------


def window(query: TransactionQuery, release: Release, now_ms: int) -> Window | None:
    """The condition on time, or None where the release applies none.

    FROM_TO looks at the start, except on 3.8 and 3.9: there at the stop for STOPPED, and at **nothing**
    for ALL. TODAY and LAST_n look at the start's calendar day in UTC in every release.
    """
    if query.period == "ALL":
        return None
    if query.period == "FROM_TO":
        if release.period_field_by_type and query.type == "ALL":
            return None
        stop_based = release.period_field_by_type and query.type == "STOPPED"
        first, last = query.from_ms or 0, query.to_ms or 0
        if release.dates_outside_storage_match_nothing and (
            first < FIRST_STORABLE_MS or last > LAST_STORABLE_MS
        ):
            return Window("start", 1, 0)
        return Window("stop" if stop_based else "start", first, last)
    today = now_ms - now_ms % DAY_MS
    return Window("start", today - LAST_DAYS.get(query.period, 0) * DAY_MS, today + DAY_MS - 1)


def select(store: SteveStore, query: TransactionQuery, when: Window | None) -> list[int]:
    """Rows that match, newest first."""
    rows = _candidates(store, query, when)
    if query.type == "ACTIVE":
        rows = (row for row in rows if row in store.open_rows)
    elif query.type == "STOPPED":
        rows = (row for row in rows if row not in store.open_rows)
    if when is not None:
        column = store.start_ms if when.field == "start" else store.stop_ms
        rows = (row for row in rows if column[row] != UNSET and when.first_ms <= column[row] <= when.last_ms)
    if query.charge_boxes or query.connector_id is not None:
        connectors = _connectors(store, query)
        rows = (row for row in rows if store.connector_of[row] in connectors)
    if query.id_tags or query.users:
        texts = _tag_texts(store, query)
        rows = (row for row in rows if store.tag_text_of[row] in texts)
    return sorted(rows, reverse=True)


def _candidates(store: SteveStore, query: TransactionQuery, when: Window | None) -> Iterable[int]:
    """The cheapest set of rows that contains all that match."""
    if query.pks:
        return store.rows_of(set(query.pks))
    if query.type == "ACTIVE":
        return store.open_rows
    if when is not None:
        index = store.by_start if when.field == "start" else store.by_stop
        return index.between(when.first_ms, when.last_ms)
    if store.alive_count == len(store.ids):
        return range(len(store.ids))
    return (row for row in range(len(store.ids)) if store.alive[row])


def _connectors(store: SteveStore, query: TransactionQuery) -> set[int]:
    return {
        index
        for index, connector in enumerate(store.connectors)
        if (not query.charge_boxes or collation_key(connector.charge_box_id) in query.charge_boxes)
        and query.connector_id in {None, connector.connector_id}
    }


def _tag_texts(store: SteveStore, query: TransactionQuery) -> set[int]:
    found = set()
    for index, text in enumerate(store.tag_texts):
        pk = store.tag_text_pks[index]
        owner = store.tags[pk].user_pk if pk is not None else None
        by_tag = not query.id_tags or collation_key(text) in query.id_tags
        if by_tag and (not query.users or owner in query.users):
            found.add(index)
    return found
