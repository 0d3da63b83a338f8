"""Lago's event stores: what each accepts, refuses, overwrites and half-keeps.

========================  =====================================================================
``postgres``              since v1.39: a batch is stored whole or not at all
``postgres-1.32``         v1.32.4 to v1.38: a batch with a duplicate is refused with 422, and the
                          others of it are stored all the same, without post-processing
``postgres-1.30``         up to v1.32.3: uniqueness is validated before anything is stored; a
                          duplicate inside the batch is met while storing: 500, the earlier stay
``clickhouse``            everything is accepted; the same (code, subscription, transaction id,
                          timestamp) overwrites silently, another timestamp is another event
``clickhouse-plain``      the same for an organisation without ``clickhouse_deduplication_enabled``: each
                          repeat is one more event, and counts
========================  =====================================================================
"""

from __future__ import annotations

import re
from bisect import bisect_right
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from ocpp_billing.simulators.lago_expression import ExpressionError, evaluate
from ocpp_billing.simulators.lago_formats import (
    LAST_POSTGRES_US,
    from_us,
    internal_error,
    iso_milliseconds,
    iso_seconds,
    lago_uuid,
    read_timestamp_us,
    scalar_text,
    unprocessable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocpp_billing.simulators.lago_catalogue import Metric

StoreName = Literal["postgres", "postgres-1.32", "postgres-1.30", "clickhouse", "clickhouse-plain"]
STORES: tuple[StoreName, ...] = get_args(StoreName)
POSTGRES_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
CLICKHOUSE_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
DUPLICATE = {"transaction_id": ["value_already_exist"]}
BAD_TIMESTAMP = {"timestamp": ["invalid_format"]}
UNREAD: Any = object()

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


class StoredEvent:
    """One event as the store holds it.

    ``at_us`` is the event's own time, ``stored_us`` when it came (microseconds since 1970);
    ``properties`` are JSON bytes; ``processed`` tells whether the job after storing ran;
    ``replaced_us`` is when a ClickHouse row was overwritten; ``fees`` are the fees it was counted in;
    ``older`` is the next event with the same transaction id.
    """

    __slots__ = (
        "_value",
        "at_us",
        "code",
        "fees",
        "number",
        "older",
        "precise_amount",
        "processed",
        "properties",
        "replaced_us",
        "stored_us",
        "subscription",
        "transaction_id",
    )

    def __init__(
        self,
        transaction_id: str,
        code: str,
        subscription: str | None,
        at_us: int,
        properties: bytes,
        precise_amount: str | None,
        stored_us: int,
    ) -> None:
        self.transaction_id = transaction_id
        self.code = code
        self.subscription = subscription
        self.at_us = at_us
        self.properties = properties
        self.precise_amount = precise_amount
        self.stored_us = stored_us
        self.number = 0
        self.processed = True
        self.replaced_us: int | None = None
        self.older: StoredEvent | None = None
        self.fees: tuple[Any, ...] = ()
        self._value: Decimal | None = UNREAD

    def read_properties(self) -> dict[str, Any]:
        """The properties as an object."""
        read: dict[str, Any] = decode(self.properties)
        return read

    def value(self, field: str | None, *, clickhouse: bool) -> Decimal | None:
        """The number Lago sums, or None where the event does not count at all.

        PostgreSQL counts only what matches its number pattern; ClickHouse counts what it
        cannot read as zero. Metrics cannot be changed, so the first answer is kept.
        """
        if self._value is UNREAD:
            self._value = self._read_value(field, clickhouse=clickhouse)
        return self._value

    def _read_value(self, field: str | None, *, clickhouse: bool) -> Decimal | None:
        if field is None:
            return Decimal(1)
        given = self.read_properties().get(field)
        if given is None:
            return None
        text = _json_text(given)
        if clickhouse:
            return Decimal(text) if CLICKHOUSE_NUMBER.fullmatch(text) else Decimal(0)
        return Decimal(text) if POSTGRES_NUMBER.fullmatch(text) else None


class Series:
    """The events of one subscription and metric code, in order of arrival."""

    __slots__ = ("arrivals", "replaced")

    def __init__(self) -> None:
        self.arrivals: list[StoredEvent] = []
        self.replaced = 0


class EventStore:
    """All events of the organisation, behind the behaviour of one store.

    Attributes:
        batch_max: ``LAGO_EVENTS_BATCH_MAX_LENGTH``.
        visibility_delay_us: ClickHouse only: how long a stored event cannot be read yet.
        merge_delay_us: ClickHouse only: how long an overwritten row still shows in ``GET /events``.
        lose_events: how many of the next events are answered with 200 and thrown away.
        lose_jobs: how many of the next events are stored without the job after storing.
        known_subscriptions: when set, a batch refuses other subscriptions, as newer documentation
            says (and the code that was read does not do).
    """

    def __init__(self, store: StoreName, version: tuple[int, ...], metrics: dict[str, Metric]) -> None:
        self.store = store
        self.clickhouse = store in {"clickhouse", "clickhouse-plain"}
        self.binary_float_time = version < (1, 48)
        self.metrics = metrics
        self.batch_max = 100
        self.visibility_delay_us = 0
        self.merge_delay_us = 60_000_000
        self.lose_events = 0
        self.lose_jobs = 0
        self.known_subscriptions: dict[str, Any] | None = None
        self.events: list[StoredEvent] = []
        self._by_id: dict[str, StoredEvent] = {}
        self._series: dict[str | None, dict[str, Series]] = {}
        self._changes = 0
        self._last_number = 0
        self._sorted: tuple[Any, list[StoredEvent]] | None = None
        self._words: dict[str, str] = {}

    # -- writing -------------------------------------------------------------------------------

    def add_one(self, given: dict[str, Any], now_us: int) -> StoredEvent:
        """``POST /events``.

        Raises:
            LagoError: 422 with field errors, or 500 for a time PostgreSQL cannot hold.
        """
        read = self._read(given, now_us)
        if not isinstance(read, StoredEvent):
            raise unprocessable(read)
        if not self.clickhouse:
            if _holds_nul(read):
                raise unprocessable(BAD_TIMESTAMP)
            if self._is_duplicate(read):
                raise unprocessable(DUPLICATE)
            _check_range([read])
        self._keep(read)
        return read

    def add_batch(self, given: Any, now_us: int) -> list[StoredEvent]:
        """``POST /events/batch``, in the way of the store.

        Raises:
            LagoError: 422 keyed by index (as strings) or by ``events``; 500.
        """
        items = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
        if not items:
            raise unprocessable({"events": ["no_events"]})
        if len(items) > self.batch_max:
            raise unprocessable({"events": ["too_many_events"]})
        read: list[StoredEvent] = []
        errors: dict[str, Any] = {}
        for index, item in enumerate(items):
            event = self._read(item, now_us)
            if not isinstance(event, StoredEvent):
                errors[str(index)] = event
                continue
            read.append(event)
            if self.store == "postgres-1.30" and self._is_duplicate(event):
                errors[str(index)] = DUPLICATE
            elif self.known_subscriptions is not None and event.subscription not in self.known_subscriptions:
                errors[str(index)] = {"external_subscription_id": ["subscription_not_found"]}
        if errors:
            raise unprocessable(errors)
        if self.clickhouse:
            self._produce(read)
        elif self.store == "postgres-1.30":
            self._store_one_after_the_other(read)
        else:
            self._store_in_bulk(read)
        return read

    def _store_in_bulk(self, events: list[StoredEvent]) -> None:
        """Since v1.32.4: one INSERT that skips conflicts; results are matched by transaction id alone."""
        _check_storable(events)
        fresh: list[StoredEvent] = []
        seen_rows: set[tuple[str | None, str]] = set()
        seen_ids: set[str] = set()
        errors: dict[str, Any] = {}
        for index, event in enumerate(events):
            row = (event.subscription, event.transaction_id)
            inserted = not self._is_duplicate(event) and (event.subscription is None or row not in seen_rows)
            if inserted:
                fresh.append(event)
                seen_rows.add(row)
            # The same id under another subscription of this batch is inserted and yet not recognised
            # as inserted, so such a batch is refused for ever.
            if not inserted or event.transaction_id in seen_ids:
                errors[str(index)] = DUPLICATE
            seen_ids.add(event.transaction_id)
        if not errors:
            for event in events:
                self._keep(event)
            return
        if self.store == "postgres-1.32":
            for event in fresh:
                self._keep(event, processed=False)
        raise unprocessable(errors)

    def _store_one_after_the_other(self, events: list[StoredEvent]) -> None:
        """Up to v1.32.3: an error while storing leaves the earlier events behind."""
        stored: list[StoredEvent] = []
        for event in events:
            if self._is_duplicate(event) or _holds_nul(event) or event.at_us > LAST_POSTGRES_US:
                for earlier in stored:
                    earlier.processed = False
                raise internal_error()
            self._keep(event)
            stored.append(event)

    def _produce(self, events: list[StoredEvent]) -> None:
        for event in events:
            self._keep(event)

    def _keep(self, event: StoredEvent, *, processed: bool = True) -> None:
        self._last_number += 1
        event.number = self._last_number
        if self.lose_events > 0:
            self.lose_events -= 1
            event.processed = False
            return
        if self.lose_jobs > 0:
            self.lose_jobs -= 1
            processed = False
        event.processed = processed
        by_code = self._series.get(event.subscription)
        if by_code is None:
            by_code = self._series[event.subscription] = {}
        series = by_code.get(event.code)
        if series is None:
            series = by_code[event.code] = Series()
        older = self._by_id.get(event.transaction_id)
        if older is not None:
            event.older = older
            if self.store == "clickhouse":
                self._replace(event, series)
        self._by_id[event.transaction_id] = event
        series.arrivals.append(event)
        self.events.append(event)
        self._changes += 1

    def _replace(self, event: StoredEvent, series: Series) -> None:
        for other in self._same_id(event.transaction_id):
            same = other.code == event.code and other.subscription == event.subscription
            if same and other.at_us == event.at_us and other.replaced_us is None:
                other.replaced_us = event.stored_us
                series.replaced += 1

    def _same_id(self, transaction_id: str) -> Iterator[StoredEvent]:
        event = self._by_id.get(transaction_id)
        while event is not None:
            yield event
            event = event.older

    def _is_duplicate(self, event: StoredEvent) -> bool:
        """Unique per organisation, subscription and transaction id; NULL subscriptions never collide."""
        if event.transaction_id not in self._by_id or event.subscription is None:
            return False
        return any(other.subscription == event.subscription for other in self._same_id(event.transaction_id))

    # -- reading a body ------------------------------------------------------------------------

    def _read(self, given: dict[str, Any], now_us: int) -> StoredEvent | dict[str, list[str]] | str:
        """The event of a body, or its field errors, or the words of a failed expression."""
        transaction_id = scalar_text(given.get("transaction_id"))
        code = scalar_text(given.get("code"))
        subscription = scalar_text(given.get("external_subscription_id"))
        errors: dict[str, list[str]] = {}
        if not transaction_id or not transaction_id.strip():
            errors["transaction_id"] = ["value_is_mandatory"]
        if not code or not code.strip():
            errors["code"] = ["value_is_mandatory"]
        time = given.get("timestamp")
        # Arrays and objects are no permitted scalars: they are dropped like an absent timestamp.
        absent = time is None or isinstance(time, list | dict)
        at_us = now_us if absent else read_timestamp_us(time, binary_float=self.binary_float_time)
        if at_us is None:
            errors["timestamp"] = ["invalid_format"]
        if errors or at_us is None or transaction_id is None or code is None:
            return errors
        if self.clickhouse:
            at_us = at_us // 1000 * 1000  # its column holds milliseconds
        properties = given.get("properties")
        if not isinstance(properties, dict):
            properties = {}
        metric = self.metrics.get(code)
        if metric is not None and metric.expression and metric.field_name:
            try:
                value = evaluate(
                    metric.expression,
                    code=code,
                    timestamp_s=Decimal(at_us) / 1_000_000,
                    properties=properties,
                )
            except ExpressionError as error:
                return f"expression_evaluation_failed: {error}"
            properties = {**properties, metric.field_name: str(value)}
        return StoredEvent(
            transaction_id,
            self._words.setdefault(code, code),
            None if subscription is None else self._words.setdefault(subscription, subscription),
            at_us,
            encode(properties),
            scalar_text(given.get("precise_total_amount_cents")),
            now_us,
        )

    # -- reading back --------------------------------------------------------------------------

    def series(self, subscription: str | None, code: str) -> Series | None:
        """The series of a subscription and metric code, or None where nothing ever came."""
        return self._series.get(subscription, {}).get(code)

    def is_visible(self, event: StoredEvent, now_us: int) -> bool:
        """Whether a query sees the event already (ClickHouse is eventual)."""
        return not self.clickhouse or event.stored_us + self.visibility_delay_us <= now_us

    def find(self, transaction_id: str, now_us: int) -> StoredEvent | None:
        """``GET /events/{transaction_id}``: the first that was stored, whatever its subscription."""
        visible = [event for event in self._same_id(transaction_id) if self.is_visible(event, now_us)]
        unreplaced = [event for event in visible if event.replaced_us is None]
        return unreplaced[-1] if unreplaced else None

    def select(
        self,
        *,
        subscription: str | None,
        code: str | None,
        from_us: int | None,
        to_us: int | None,
        now_us: int,
    ) -> list[StoredEvent]:
        """``GET /events``: newest first, then by transaction id; both ends of the window inclusive.

        On ClickHouse a row that was overwritten shows beside its successor until it is merged.
        """
        found = self._all_sorted(subscription, code)
        if to_us is not None:
            found = found[bisect_right(found, -to_us - 1, key=lambda event: -event.at_us) :]
        if from_us is not None:
            found = found[: bisect_right(found, -from_us, key=lambda event: -event.at_us)]
        if not self.clickhouse:
            return found
        return [
            event
            for event in found
            if self.is_visible(event, now_us)
            and (event.replaced_us is None or event.replaced_us + self.merge_delay_us > now_us)
        ]

    def _all_sorted(self, subscription: str | None, code: str | None) -> list[StoredEvent]:
        # One sorted list is kept, for a client that pages through a long answer.
        key = (subscription, code, self._changes)
        if self._sorted is None or self._sorted[0] != key:
            if subscription is None and code is None:
                found = list(self.events)
            else:
                groups = (
                    self._series.values() if subscription is None else [self._series.get(subscription, {})]
                )
                found = [
                    event
                    for by_code in groups
                    for name, series in by_code.items()
                    if code is None or name == code
                    for event in series.arrivals
                ]
            found.sort(key=lambda event: (-event.at_us, event.transaction_id))
            self._sorted = (key, found)
        return self._sorted[1]

    # -- answers -------------------------------------------------------------------------------

    def event_json(self, event: StoredEvent, *, created: bool = False) -> dict[str, Any]:
        """An event as the API shows it; ``created`` = in the answer to its POST.

        lago_customer_id and lago_subscription_id are always null. PostgreSQL's jsonb gives
        the properties back in an order of its own. ClickHouse has no id when an event is created, and
        a composite one when it is read.
        """
        properties = event.properties
        lago_id: str | None = lago_uuid(0xE0, event.number)
        if self.clickhouse:
            ingested = event.stored_us // 1_000_000
            lago_id = None if created else f"{event.subscription}-{event.transaction_id}-{ingested}"
        elif not created:
            read = event.read_properties()
            properties = encode({name: read[name] for name in sorted(read, key=_jsonb_order)})
        return {
            "lago_id": lago_id,
            "transaction_id": event.transaction_id,
            "lago_customer_id": None,
            "code": event.code,
            "timestamp": iso_milliseconds(event.at_us),
            "precise_total_amount_cents": event.precise_amount,
            "properties": msgspec.Raw(properties),
            "lago_subscription_id": None,
            "external_subscription_id": event.subscription,
            "created_at": iso_seconds(from_us(event.stored_us)),
        }


def _jsonb_order(name: str) -> tuple[int, bytes]:
    raw = name.encode()
    return len(raw), raw


def _json_text(value: Any) -> str:
    """A JSON value as ``->>`` gives it; numbers without an exponent, as PostgreSQL's numeric prints them."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    return encode(value).decode()


def _holds_nul(event: StoredEvent) -> bool:
    if any("\x00" in text for text in (event.transaction_id, event.code, event.subscription or "")):
        return True
    if b"\\u0000" not in event.properties:
        return False
    read = event.read_properties()
    return any("\x00" in text for text in (*read, *read.values()) if isinstance(text, str))


def _check_range(events: list[StoredEvent]) -> None:
    if any(event.at_us > LAST_POSTGRES_US for event in events):
        raise internal_error()


def _check_storable(events: list[StoredEvent]) -> None:
    """A bulk INSERT that PostgreSQL refuses is a 500 of the whole batch: one poison event stops all."""
    _check_range(events)
    if any(_holds_nul(event) for event in events):
        raise internal_error()
