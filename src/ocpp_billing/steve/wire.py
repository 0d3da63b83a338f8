"""What StEvE's answers look like, and what we make of them row by row.

An answer is decoded in one go. When a single row of it is not as it must be, the answer is taken apart
and that row alone is set aside as a :class:`MalformedRow`; its neighbours go on. *Malformed* means the
shape only: a field that is missing or of another type, a register that is no whole number, a time
that is none. Whether a sane-looking row makes sense (negative energy, wrong clocks) is decided later.

Shapes and meanings are those of StEvE 3.6 to 3.14; fields that a release adds are ignored. Every
release sends every key, null or not, so a key that is missing is a change of the API and makes the row
malformed: a renamed ``stopTimestamp`` must not look like a session that never ends.
"""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from ocpp_billing.steve.errors import NotJson, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LARGEST_ID: Final = 2**63 - 1
LARGEST_REGISTER_WH: Final = 2**31 - 1
SMALLEST_REGISTER_WH: Final = -(2**31)
LONGEST_RAW: Final = 8_192

# StEvE's own columns are VARCHAR(255); what is longer did not come out of its database.
_Text = Annotated[str, msgspec.Meta(max_length=255)]
_Id = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_ID)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class MalformedRow(msgspec.Struct, frozen=True):
    """A row that could not be understood and was set aside.

    Attributes:
        raw: its JSON (or CSV) text as it came, cut after 8,192 characters.
        reason: what is wrong with it, in plain words.
        steve_id: StEvE's number of the transaction or tag, where at least that could be read.
    """

    raw: str
    reason: str
    steve_id: int | None


class Transaction(msgspec.Struct, frozen=True, gc=False):
    """A charging transaction as StEvE showed it, and what its texts mean.

    Attributes:
        steve_id: transaction_pk; grows in order of arrival.
        connector_id: OCPP connector; 0 is possible.
        id_tag_pk: StEvE's number of the tag; changes when a StEvE is migrated.
        charge_box_id: the charge box.
        id_tag: as the charger sent it at the start, whatever its case.
        start_value: the register at the start exactly as given.
        start_timestamp: the charger's time exactly as given; None after a start dated beyond 2038 (3.7.1).
        stop_value: exactly as given; may be set while ``stop_timestamp`` is None (then StEvE itself calls
            the transaction active).
        stop_timestamp: exactly as given; None while StEvE calls the transaction active.
        stop_reason: OCPP 1.6 reason; None when none was sent, and always for manual stops.
        stop_actor: ``station`` or ``manual``.
        start_wh: start register, Wh; negative is possible.
        started_at: UTC.
        stop_wh: stop register, Wh; None while active.
        stopped_at: UTC; None while active.
    """

    steve_id: int
    connector_id: int
    id_tag_pk: int
    charge_box_id: str
    id_tag: str
    start_value: str
    start_timestamp: str | None
    stop_value: str | None
    stop_timestamp: str | None
    stop_reason: str | None
    stop_actor: str | None
    start_wh: int
    started_at: datetime | None
    stop_wh: int | None
    stopped_at: datetime | None


class Tag(msgspec.Struct, frozen=True, gc=False):
    """An OCPP tag as StEvE holds it.

    Attributes:
        pk: StEvE's number of the tag.
        id_tag: its text; StEvE compares it without regard to case, accents and trailing blanks.
        parent_pk: number of the parent tag.
        parent_id_tag: text of the parent tag.
        is_blocked: whether StEvE refuses it (maxActiveTransactionCount 0).
        in_transaction: whether a transaction of it is active, stuck ones included.
        expires_at: UTC.
        note: free text; StEvE writes one for tags that it adds itself.
    """

    pk: int
    id_tag: str
    parent_pk: int | None
    parent_id_tag: str | None
    is_blocked: bool
    in_transaction: bool
    expires_at: datetime | None
    note: str | None


class MeterValue(msgspec.Struct, frozen=True, gc=False):
    """One sampled value of a transaction, not normalised: units are mixed, phases stand beside totals.

    Attributes:
        measured_at: the charger's time, UTC; None when it sent none.
        value: decimal text, or an opaque blob when ``format`` is ``SignedData``.
        context: OCPP reading context; None means Sample.Periodic.
        format: None means Raw.
        measurand: None means Energy.Active.Import.Register.
        location: None means Outlet.
        unit: None means Wh.
        phase: None for totals.
    """

    measured_at: datetime | None
    value: str | None
    context: str | None
    format: str | None
    measurand: str | None
    location: str | None
    unit: str | None
    phase: str | None


class ReportRow(msgspec.Struct, frozen=True, gc=False):
    """A stopped transaction in the CSV report (>= 3.12), the only place that says when stops *arrived*.

    Attributes:
        steve_id: transaction_pk.
        id_tag: the tag's text.
        start_received_at: when StEvE received the start, UTC.
        started_at: the charger's time of the start, UTC.
        start_value: register at the start as given.
        stop_actor: ``station`` or ``manual``.
        stop_received_at: when StEvE received or made the stop, UTC.
        stopped_at: the charger's time of the stop, UTC.
        stop_value: register at the stop as given.
        stop_reason: None when none was sent.
    """

    steve_id: int
    id_tag: str
    start_received_at: datetime
    started_at: datetime | None
    start_value: str
    stop_actor: str | None
    stop_received_at: datetime
    stopped_at: datetime | None
    stop_value: str
    stop_reason: str | None


class TransactionsAnswer(msgspec.Struct, frozen=True):
    """Transactions in StEvE's order (highest id first), and what was set aside."""

    rows: list[Transaction]
    malformed: list[MalformedRow]


class TagsAnswer(msgspec.Struct, frozen=True):
    """Tags in no particular order, and what was set aside."""

    rows: list[Tag]
    malformed: list[MalformedRow]


class TransactionDetails(msgspec.Struct, frozen=True):
    """A transaction with its meter values by time, and the values that were set aside."""

    transaction: Transaction
    values: list[MeterValue]
    malformed: list[MalformedRow]


class ReportAnswer(msgspec.Struct, frozen=True):
    """Rows of the CSV report by start time, and what was set aside."""

    rows: list[ReportRow]
    malformed: list[MalformedRow]


class _TransactionWire(msgspec.Struct, frozen=True, gc=False):
    id: _Id
    connectorId: _Int32  # noqa: N815 - StEvE's own names, in all structs of the wire
    ocppTagPk: _Id  # noqa: N815
    chargeBoxId: _Text  # noqa: N815
    ocppIdTag: _Text  # noqa: N815
    startValue: _Text | None  # noqa: N815
    startTimestamp: _Text | None  # noqa: N815
    stopValue: _Text | None  # noqa: N815
    stopTimestamp: _Text | None  # noqa: N815
    stopReason: _Text | None  # noqa: N815
    stopEventActor: _Text | None  # noqa: N815


class _TagWire(msgspec.Struct, frozen=True, gc=False):
    ocppTagPk: _Id  # noqa: N815
    idTag: _Text  # noqa: N815
    parentOcppTagPk: _Id | None  # noqa: N815
    parentIdTag: _Text | None  # noqa: N815
    blocked: bool
    inTransaction: bool  # noqa: N815
    expiryDate: _Text | None  # noqa: N815
    note: str | None


class _MeterValueWire(msgspec.Struct, frozen=True, gc=False):
    valueTimestamp: _Text | None  # noqa: N815
    value: str | None
    readingContext: str | None  # noqa: N815
    format: str | None
    measurand: str | None
    location: str | None
    unit: str | None
    phase: str | None


class _DetailsWire(msgspec.Struct, frozen=True):
    transaction: msgspec.Raw
    values: msgspec.Raw


class _Numbered(msgspec.Struct, frozen=True):
    id: int | None = None
    ocppTagPk: int | None = None  # noqa: N815


class _Malformed(Exception):  # noqa: N818 - never leaves this module
    """Why a row is malformed."""


_TRANSACTIONS = msgspec.json.Decoder(list[_TransactionWire])
_TRANSACTION = msgspec.json.Decoder(_TransactionWire)
_TAGS = msgspec.json.Decoder(list[_TagWire])
_TAG = msgspec.json.Decoder(_TagWire)
_VALUES = msgspec.json.Decoder(list[_MeterValueWire])
_VALUE = msgspec.json.Decoder(_MeterValueWire)
_DETAILS = msgspec.json.Decoder(_DetailsWire)
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_NUMBERED = msgspec.json.Decoder(_Numbered)
_REPORT_COLUMNS: Final = frozenset(
    {
        "transaction_pk",
        "id_tag",
        "start_event_timestamp",
        "start_timestamp",
        "start_value",
        "stop_event_actor",
        "stop_event_timestamp",
        "stop_timestamp",
        "stop_value",
        "stop_reason",
    }
)
_Wire = TypeVar("_Wire")
_Row = TypeVar("_Row")
_encode = msgspec.json.Encoder().encode


def fingerprint(row: Transaction) -> bytes:
    """What makes a transaction itself, whatever its number: 32 bytes.

    SHA-256 of the compact UTF-8 JSON ``[chargeBoxId, connectorId, ocppIdTag, startTimestamp,
    startValue]``, each exactly as StEvE gave it, null included. None of the five ever changes in StEvE;
    ids start again after a re-installation, and tag numbers change when a StEvE is migrated.
    """
    identity = (row.charge_box_id, row.connector_id, row.id_tag, row.start_timestamp, row.start_value)
    return sha256(_encode(identity)).digest()


def decode_transactions(body: bytes) -> TransactionsAnswer:
    """Decode the answer to ``GET /transactions``.

    Raises:
        NotJson: when it is not a JSON list.
        Unreachable: when it is the beginning of one.
    """
    rows, malformed = _decode_rows(body, _TRANSACTIONS, _TRANSACTION, _transaction)
    return TransactionsAnswer(rows, malformed)


def decode_tags(body: bytes) -> TagsAnswer:
    """Decode the answer to ``GET /ocppTags``; raises as :func:`decode_transactions`."""
    rows, malformed = _decode_rows(body, _TAGS, _TAG, _tag)
    return TagsAnswer(rows, malformed)


def decode_details(body: bytes) -> TransactionDetails:
    """Decode the answer to ``GET /transactions/{id}``; raises as :func:`decode_transactions`."""
    try:
        parts = _DETAILS.decode(body)
    except (ValueError, RecursionError) as error:
        raise _unusable(body, error) from None
    transaction = _decode_one(bytes(parts.transaction), _TRANSACTION, _transaction)
    values, malformed = _decode_rows(bytes(parts.values), _VALUES, _VALUE, _meter_value)
    return TransactionDetails(transaction, values, malformed)


def decode_report(body: bytes) -> ReportAnswer:
    """Decode the CSV report, whose character set is ISO 8859-1 and whose nulls are ``""``.

    Columns are taken by name: the second one is called differently from 3.13 on, and none is needed.

    Raises:
        NotJson: when it is not that report.
    """
    lines = csv.reader(io.StringIO(body.decode("latin-1"), newline=""))
    rows: list[ReportRow] = []
    malformed: list[MalformedRow] = []
    try:
        header = next(lines, [])
        if not _REPORT_COLUMNS.issubset(header):
            raise NotJson(
                "StEvE's answer is not its CSV report (other columns): " + json.dumps(header)[:LONGEST_RAW]
            )
        for line in lines:
            try:
                rows.append(_report_row(header, line))
            except _Malformed as error:
                malformed.append(MalformedRow(",".join(line)[:LONGEST_RAW], str(error), None))
    except csv.Error as error:
        raise NotJson(f"StEvE's CSV report cannot be read: {error}.") from None
    return ReportAnswer(rows, malformed)


def _decode_rows(
    body: bytes,
    whole: msgspec.json.Decoder[list[_Wire]],
    single: msgspec.json.Decoder[_Wire],
    make: Callable[[_Wire], _Row],
) -> tuple[list[_Row], list[MalformedRow]]:
    """All rows in one go, or, when one of them is malformed, one by one."""
    try:
        return [make(wire) for wire in whole.decode(body)], []
    except (ValueError, RecursionError, _Malformed):
        pass
    rows: list[_Row] = []
    malformed: list[MalformedRow] = []
    for raw in _split(body):
        try:
            rows.append(make(single.decode(raw)))
        except (ValueError, RecursionError, _Malformed) as error:
            text = raw.decode("utf-8", "replace")
            malformed.append(MalformedRow(_cut(text), _reason(error), _number_of(raw)))
    return rows, malformed


def _decode_one(body: bytes, single: msgspec.json.Decoder[_Wire], make: Callable[[_Wire], _Row]) -> _Row:
    try:
        return make(single.decode(body))
    except _Malformed as error:
        raise NotJson(f"StEvE's answer is not as it must be ({error}).") from None
    except (ValueError, RecursionError) as error:
        raise _unusable(body, error) from None


def _split(body: bytes) -> Sequence[bytes]:
    """The rows of a JSON list, each still encoded.

    Raises:
        NotJson: when it is none.
        Unreachable: when it breaks off.
    """
    try:
        return [bytes(raw) for raw in _RAWS.decode(body)]
    except RecursionError as error:
        raise _unusable(body, error) from None
    except ValueError as error:
        # msgspec refuses half of a surrogate pair wherever it stands; the standard library lets it pass,
        # so that one odd character costs one row and not the answer.
        try:
            items = json.loads(body)
            if isinstance(items, list):
                return [json.dumps(item).encode() for item in items]
        except (ValueError, RecursionError):
            pass
        raise _unusable(body, error) from None


def _unusable(body: bytes, error: Exception) -> NotJson | Unreachable:
    """What to say about an answer that is not JSON, or not of the shape that was asked for."""
    beginning = body.lstrip()[:1]
    if "truncated" in str(error) and beginning in {b"[", b"{"}:
        return Unreachable(
            "StEvE's answer broke off before its end. If this happens again, look at StEvE's log and at "
            "limits of a proxy in front of it."
        )
    what = "a web page" if beginning == b"<" else "nothing" if not beginning else "not what its API says"
    return NotJson(
        f"What answered is not StEvE's API: the answer is {what} ({_reason(error)}). Check STEVE_API_URL, "
        "and whether a proxy or a sign-in page stands in front of StEvE."
    )


def _reason(error: Exception) -> str:
    """Why a row could not be decoded, with the field first: ``id: expected `int`, got `str```."""
    if isinstance(error, UnicodeDecodeError):
        return "text that is not UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    message, _, path = str(error).partition(" - at `$.")
    return f"{path.rstrip('`')}: {message[:1].lower()}{message[1:]}" if path else message


def _number_of(raw: bytes) -> int | None:
    try:
        numbered = _NUMBERED.decode(raw)
    except (ValueError, RecursionError):
        return None
    number = numbered.id if numbered.id is not None else numbered.ocppTagPk
    return number if number is not None and 1 <= number <= LARGEST_ID else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_RAW else text[: LONGEST_RAW - 1] + "…"


def _transaction(wire: _TransactionWire) -> Transaction:
    if wire.startValue is None:
        raise _Malformed("startValue: is null")
    stop_wh = stopped_at = None
    if wire.stopTimestamp is not None:
        if wire.stopValue is None:
            raise _Malformed("stopValue: is null although stopTimestamp is set")
        stop_wh = _register_wh("stopValue", wire.stopValue)
        stopped_at = _moment("stopTimestamp", wire.stopTimestamp)
    # PostgreSQL holds no NUL; one would fail the whole batch (Python even takes one between date and time).
    if "\0" in (
        f"{wire.chargeBoxId}{wire.ocppIdTag}{wire.startTimestamp}{wire.stopTimestamp}"
        f"{wire.stopValue}{wire.stopReason}{wire.stopEventActor}"
    ):
        raise _Malformed("a text: contains a NUL character")
    return Transaction(
        wire.id,
        wire.connectorId,
        wire.ocppTagPk,
        wire.chargeBoxId,
        wire.ocppIdTag,
        wire.startValue,
        wire.startTimestamp,
        wire.stopValue,
        wire.stopTimestamp,
        wire.stopReason,
        wire.stopEventActor,
        _register_wh("startValue", wire.startValue),
        None if wire.startTimestamp is None else _moment("startTimestamp", wire.startTimestamp),
        stop_wh,
        stopped_at,
    )


def _register_wh(field: str, text: str) -> int:
    """A meter register in Wh from StEvE's text.

    StEvE writes a 32-bit OCPP integer as text; anything else did not come from a charger by that way,
    and guessing (12.5? 1e3? NaN?) is how money was lost before.
    """
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        shown = _shown(text) if text else "empty"
        raise _Malformed(f"{field}: {shown} is not a whole number of Wh")
    # The length first: int() refuses thousands of digits, and leading zeros change nothing.
    if (
        len(digits.lstrip("0")) > 10
        or not SMALLEST_REGISTER_WH <= (value := int(text)) <= LARGEST_REGISTER_WH
    ):
        raise _Malformed(f"{field}: {_shown(text)} is beyond the 32-bit register of OCPP")
    return value


def _moment(field: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is UTC:
            return moment
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _Malformed(f"{field}: {_shown(text)} is not a point in time") from None
    raise _Malformed(f"{field}: {_shown(text)} has no time zone")


def _shown(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else text[:39] + "…", ensure_ascii=False)


def _tag(wire: _TagWire) -> Tag:
    if any(text is not None and "\0" in text for text in (wire.idTag, wire.parentIdTag, wire.note)):
        raise _Malformed("a text: contains a NUL character")
    return Tag(
        wire.ocppTagPk,
        wire.idTag,
        wire.parentOcppTagPk,
        wire.parentIdTag,
        wire.blocked,
        wire.inTransaction,
        None if wire.expiryDate is None else _moment("expiryDate", wire.expiryDate),
        wire.note,
    )


def _meter_value(wire: _MeterValueWire) -> MeterValue:
    return MeterValue(
        None if wire.valueTimestamp is None else _moment("valueTimestamp", wire.valueTimestamp),
        wire.value,
        wire.readingContext,
        wire.format,
        wire.measurand,
        wire.location,
        wire.unit,
        wire.phase,
    )


def _report_row(header: list[str], line: list[str]) -> ReportRow:
    if len(line) != len(header):
        raise _Malformed(f"{len(line)} columns instead of {len(header)}")
    cells = dict(zip(header, line, strict=True))
    number = cells["transaction_pk"]
    if not (number.isascii() and number.isdigit() and len(number) < 20):
        raise _Malformed(f"transaction_pk: {_shown(number)} is not a number")
    return ReportRow(
        int(number),
        cells["id_tag"],
        _moment("start_event_timestamp", cells["start_event_timestamp"]),
        _moment("start_timestamp", cells["start_timestamp"]) if cells["start_timestamp"] else None,
        cells["start_value"],
        cells["stop_event_actor"] or None,
        _moment("stop_event_timestamp", cells["stop_event_timestamp"]),
        _moment("stop_timestamp", cells["stop_timestamp"]) if cells["stop_timestamp"] else None,
        cells["stop_value"],
        cells["stop_reason"] or None,
    )
