"""What a simulated StEvE has in its database: transactions, tags, charge boxes and meter values.

Made for a million transactions: columns are flat arrays (about 100 bytes per transaction), JSON is made
when somebody asks. Times are integer milliseconds since 1970 in UTC, energy is integer Wh.
"""

from __future__ import annotations

import copy
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

UNSET: Final = -(2**63)
"""Stands for null in the integer columns."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
OPEN, STATION, MANUAL = 0, 1, 2
ACTORS: Final = (None, "station", "manual")


class StoreError(Exception):
    """The database refuses what was asked."""


class DuplicateTagError(StoreError):
    """The tag exists, or its parent does not: StEvE reports both alike when a tag is created."""


class UnknownParentError(StoreError):
    """The parent of a tag that is being changed does not exist."""


class TagIsParentError(StoreError):
    """A tag that others name as their parent cannot be deleted."""


class UnknownTagError(StoreError):
    """There is no such tag."""


class UnknownTransactionError(StoreError):
    """There is no such transaction."""


def to_ms(at: datetime | str | int) -> int:
    """Milliseconds since 1970 of an aware datetime, an ISO string (UTC without a zone) or milliseconds."""
    if isinstance(at, int):
        return at
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(milliseconds=1)


def collation_key(text: str) -> str:
    """What MariaDB's ``utf8_unicode_ci`` compares: no case, no accents, no trailing blanks."""
    decomposed = unicodedata.normalize("NFKD", text.rstrip(" ").casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))


@dataclass(slots=True)
class Tag:
    """A row of ``ocpp_tag``; blocked means ``max_active`` = 0, unlimited is negative."""

    pk: int
    id_tag: str
    parent_pk: int | None = None
    max_active: int = 1
    expiry_ms: int | None = None
    note: str | None = None
    user_pk: int | None = None


class Connector(NamedTuple):
    """A connector of a charge box."""

    pk: int
    charge_box_pk: int
    charge_box_id: str
    connector_id: int


class Sample(NamedTuple):
    """One sampled value as a charge point sends it; None = not sent."""

    at: datetime | str | int
    value: str
    unit: str | None = "Wh"
    measurand: str | None = "Energy.Active.Import.Register"
    context: str | None = "Sample.Periodic"
    format: str | None = None
    location: str | None = None
    phase: str | None = None


class MeterValue(NamedTuple):
    """A row of ``connector_meter_value``."""

    at_ms: int
    value: str
    context: str | None
    format: str | None
    measurand: str | None
    location: str | None
    unit: str | None
    phase: str | None
    transaction_pk: int | None

    @classmethod
    def of(cls, sample: Sample, transaction_pk: int | None) -> MeterValue:
        """A sample as it is stored."""
        return cls(
            to_ms(sample.at),
            sample.value,
            sample.context,
            sample.format,
            sample.measurand,
            sample.location,
            sample.unit,
            sample.phase,
            transaction_pk,
        )


@dataclass(slots=True)
class LedgerEntry:
    """What really happened at a charge point, whatever StEvE shows.

    ``delivered_wh`` is None while nobody knows; ``visible`` says whether StEvE still has the
    transaction; ``stopped`` whether the charge point ended it, accepted by StEvE or not.
    """

    transaction_id: int
    charge_box_id: str
    connector_id: int
    id_tag: str
    started_ms: int | None
    start_wh: int | None
    delivered_wh: int | None
    stopped: bool
    visible: bool


class TimeIndex:
    """Rows by time: two parallel sorted arrays."""

    __slots__ = ("keys", "rows")

    def __init__(self) -> None:
        self.keys = array("q")
        self.rows = array("i")

    def add(self, key: int, row: int) -> None:
        """Add a row; cheap when its time is the latest."""
        if not self.keys or key >= self.keys[-1]:
            self.keys.append(key)
            self.rows.append(row)
            return
        position = bisect_right(self.keys, key)
        self.keys.insert(position, key)
        self.rows.insert(position, row)

    def discard(self, key: int, row: int) -> None:
        """Remove a row that was added with this time."""
        position = bisect_left(self.keys, key)
        while position < len(self.keys) and self.keys[position] == key:
            if self.rows[position] == row:
                del self.keys[position], self.rows[position]
                return
            position += 1

    def between(self, first: int, last: int) -> array[int]:
        """Rows whose time lies in ``first … last``, both included, in order of time."""
        return self.rows[bisect_left(self.keys, first) : bisect_right(self.keys, last)]

    def after(self, key: int) -> Iterator[int]:
        """Rows later than this time, in order of time."""
        for position in range(bisect_right(self.keys, key), len(self.keys)):
            yield self.rows[position]


class SteveStore:
    """The tables, with the integrity rules of the database and none of the application's."""

    def __init__(self) -> None:
        self.ids = array("q")
        self.connector_of = array("i")
        self.tag_text_of = array("i")
        self.start_ms = array("q")
        self.start_wh = array("q")
        self.start_event_ms = array("q")
        self.stop_ms = array("q")
        self.stop_wh = array("q")
        self.stop_event_ms = array("q")
        self.actor = array("b")
        self.reason = array("b")
        self.delivered_wh = array("q")
        self.ended = array("b")
        self.alive = array("b")
        self.alive_count = 0
        self.uncommitted: set[int] = set()
        """Rows that were inserted by database transactions which have not ended: nobody else sees them."""
        self.rolled_back: set[int] = set()
        self.open_rows: set[int] = set()
        self.by_start = TimeIndex()
        self.by_stop = TimeIndex()
        self.raw: dict[int, dict[str, Any]] = {}
        self.lost: list[LedgerEntry] = []
        self.failed_stops: list[dict[str, Any]] = []

        self.reasons: list[str | None] = [None]
        self.tag_texts: list[str] = []
        self.tag_text_pks: list[int | None] = []
        self._tag_text_index: dict[str, int] = {}
        self._texts_by_key: dict[str, list[int]] = {}
        self.tags: dict[int, Tag] = {}
        self.tag_faces: dict[int, dict[str, Any]] = {}
        self._tag_by_key: dict[str, int] = {}
        self.tag_version = 0
        """Grows with every change that makes rendered tags of transactions stale."""

        self.charge_boxes: dict[str, tuple[int, str]] = {}
        self.connectors: list[Connector] = []
        self._connector_index: dict[tuple[int, int], int] = {}
        self.values_of_transaction: dict[int, list[MeterValue]] = {}
        self.values_on_connector: dict[int, list[MeterValue]] = {}

        self.next_transaction_pk = 1
        self.next_tag_pk = 1
        self.next_charge_box_pk = 1
        self.next_connector_pk = 1

    # -- backup --------------------------------------------------------------------------------

    def snapshot(self) -> SteveStore:
        """A backup: an independent copy of all that is committed."""
        backup = copy.deepcopy(self)
        for row in list(backup.uncommitted):
            backup.roll_back(row)
        return backup

    def restored(self, backup: SteveStore) -> SteveStore:
        """The store after this backup was played back; the truth about what is lost is kept.

        Ids go on from where the backup was made, as after a real restore.
        """
        store = backup.snapshot()
        kept = {(entry.transaction_id, entry.id_tag, entry.started_ms) for entry in store.ledger()}
        gone = [e for e in self.ledger() if (e.transaction_id, e.id_tag, e.started_ms) not in kept]
        store.lost += [replace(entry, visible=False) for entry in gone]
        return store

    def restart(self) -> None:
        """The database is restarted, and as old as MySQL 5.7: it counts on from the highest number there is.

        So numbers that were deleted at the end of a table are given out again.
        """
        for row in list(self.uncommitted):
            self.roll_back(row)
        left = len(self.ids)
        while left and not self.alive[left - 1]:
            left -= 1
        self.lost += [self._entry(row) for row in range(left, len(self.ids)) if row not in self.rolled_back]
        self.rolled_back = {row for row in self.rolled_back if row < left}
        self.raw = {row: raw for row, raw in self.raw.items() if row < left}
        for column in self._columns():
            del column[left:]
        connectors = (self.connectors[index].pk for index in self._connector_index.values())
        self.next_transaction_pk = self.ids[-1] + 1 if left else 1
        self.next_tag_pk = max(self.tags, default=0) + 1
        self.next_charge_box_pk = max((pk for pk, _ in self.charge_boxes.values()), default=0) + 1
        self.next_connector_pk = max(connectors, default=0) + 1

    def _columns(self) -> tuple[array[int], ...]:
        return (
            self.ids,
            self.connector_of,
            self.tag_text_of,
            self.start_ms,
            self.start_wh,
            self.start_event_ms,
            self.stop_ms,
            self.stop_wh,
            self.stop_event_ms,
            self.actor,
            self.reason,
            self.delivered_wh,
            self.ended,
            self.alive,
        )

    # -- charge boxes and connectors -----------------------------------------------------------

    def charge_box(self, charge_box_id: str) -> tuple[int, str]:
        """Number and id of a charge box, registered when it is new."""
        key = collation_key(charge_box_id)
        if key not in self.charge_boxes:
            self.charge_boxes[key] = (self.next_charge_box_pk, charge_box_id)
            self.next_charge_box_pk += 1
        return self.charge_boxes[key]

    def find_charge_box(self, charge_box_id: str) -> int | None:
        """Number of a charge box, or None."""
        found = self.charge_boxes.get(collation_key(charge_box_id))
        return None if found is None else found[0]

    def delete_charge_box(self, charge_box_id: str) -> None:
        """Delete a charge box and, by cascade, its connectors' transactions and meter values.

        Raises:
            KeyError: when it does not exist.
        """
        box_pk, _ = self.charge_boxes.pop(collation_key(charge_box_id))
        gone = {i for i, connector in enumerate(self.connectors) if connector.charge_box_pk == box_pk}
        self._wait_for(row for row in self.uncommitted if self.connector_of[row] in gone)
        for row in range(len(self.ids)):
            if self.connector_of[row] in gone:
                self.remove(row)
        for index in gone:
            self.values_on_connector.pop(index, None)
            self._connector_index.pop((box_pk, self.connectors[index].connector_id))

    def connector(self, charge_box_id: str, connector_id: int, *, numbers_used_always: bool) -> int:
        """Index of a connector in :attr:`connectors`, added when it is new.

        ``numbers_used_always``: a number is used up even when the connector is there already.
        """
        box_pk, box_id = self.charge_box(charge_box_id)
        index = self._connector_index.get((box_pk, connector_id))
        if index is None:
            index = len(self.connectors)
            self._connector_index[box_pk, connector_id] = index
            self.connectors.append(Connector(self.next_connector_pk, box_pk, box_id, connector_id))
            self.next_connector_pk += 1
        elif numbers_used_always:
            self.next_connector_pk += 1
        return index

    # -- tags ----------------------------------------------------------------------------------

    def find_tag(self, id_tag: str) -> Tag | None:
        """The tag with this text in any spelling that the collation takes as equal."""
        pk = self._tag_by_key.get(collation_key(id_tag))
        return None if pk is None else self.tags[pk]

    def add_tag(
        self,
        id_tag: str,
        *,
        parent: str | None = None,
        max_active: int = 1,
        expiry_ms: int | None = None,
        note: str | None = None,
        pk: int | None = None,
    ) -> Tag:
        """Insert a tag. A number is used up even when that fails.

        Raises:
            DuplicateTagError: when it exists or the parent does not.
        """
        number = self.next_tag_pk if pk is None else pk
        self.next_tag_pk = max(self.next_tag_pk, number + 1)
        parent_tag = self.find_tag(parent) if parent else None
        if self.find_tag(id_tag) is not None or (parent and parent_tag is None):
            raise DuplicateTagError(id_tag)
        parent_pk = parent_tag.pk if parent_tag else None
        tag = Tag(number, id_tag, parent_pk, max_active, expiry_ms, note)
        self.tags[number] = tag
        self._own_texts(id_tag, number)
        return tag

    def replace_tag(
        self, pk: int, *, parent: str | None, max_active: int, expiry_ms: int | None, note: str | None
    ) -> Tag:
        """Overwrite all that can be changed of a tag.

        Raises:
            UnknownParentError: when the parent does not exist; nothing is changed then.
            UnknownTagError: when the tag does not exist.
        """
        parent_tag = self.find_tag(parent) if parent else None
        if parent and parent_tag is None:
            raise UnknownParentError(parent)
        if pk not in self.tags:
            raise UnknownTagError(pk)
        # StEvE asks for no order, and nobody shall rely on one.
        tag = self.tags[pk] = self.tags.pop(pk)
        tag.parent_pk = parent_tag.pk if parent_tag else None
        tag.max_active, tag.expiry_ms, tag.note = max_active, expiry_ms, note
        return tag

    def delete_tag(self, pk: int) -> Tag:
        """Delete a tag and, by cascade, all its transactions; their meter values stay, unowned.

        Raises:
            UnknownTagError: when it does not exist.
            TagIsParentError: when it is the parent of another.
        """
        if pk not in self.tags:
            raise UnknownTagError(pk)
        if any(other.parent_pk == pk for other in self.tags.values()):
            raise TagIsParentError(pk)
        texts = {index for index, owner in enumerate(self.tag_text_pks) if owner == pk}
        self._wait_for(row for row in self.uncommitted if self.tag_text_of[row] in texts)
        for row in range(len(self.ids)):
            if self.alive[row] and self.tag_text_of[row] in texts:
                self.remove(row)
        tag = self.tags.pop(pk)
        self._own_texts(tag.id_tag, None)
        return tag

    def _own_texts(self, id_tag: str, pk: int | None) -> None:
        """Every spelling of this tag belongs to this number from now on, or to none."""
        key = collation_key(id_tag)
        if pk is None:
            del self._tag_by_key[key]
        else:
            self._tag_by_key[key] = pk
        for index in self._texts_by_key.get(key, ()):
            self.tag_text_pks[index] = pk
        self.tag_version += 1

    def set_user(self, pk: int, user_pk: int | None) -> None:
        """Give a tag to a user, or to nobody; their transactions follow."""
        self.tags[pk].user_pk = user_pk
        self.tag_version += 1

    def tag_text(self, id_tag: str) -> int:
        """Index of a tag's text as a charge point sent it."""
        index = self._tag_text_index.get(id_tag)
        if index is None:
            index = self._tag_text_index[id_tag] = len(self.tag_texts)
            self.tag_texts.append(id_tag)
            self._texts_by_key.setdefault(collation_key(id_tag), []).append(index)
            tag = self.find_tag(id_tag)
            self.tag_text_pks.append(None if tag is None else tag.pk)
        return index

    def active_counts(self) -> dict[int, int]:
        """Open transactions by tag number, those that will never end included."""
        counts: dict[int, int] = {}
        for row in self.open_rows:
            pk = self.tag_text_pks[self.tag_text_of[row]]
            if pk is not None:
                counts[pk] = counts.get(pk, 0) + 1
        return counts

    # -- transactions --------------------------------------------------------------------------

    def row_of(self, transaction_id: int) -> int | None:
        """The row of a transaction, or None."""
        row = bisect_left(self.ids, transaction_id)
        if row < len(self.ids) and self.ids[row] == transaction_id and self.alive[row]:
            return row
        return None

    def rows_of(self, transaction_ids: set[int]) -> list[int]:
        """The rows of those that exist, newest first."""
        found = (self.row_of(transaction_id) for transaction_id in transaction_ids)
        return sorted((row for row in found if row is not None), reverse=True)

    def insert(
        self,
        connector: int,
        tag_text: int,
        start_ms: int,
        start_wh: int,
        event_ms: int,
        *,
        transaction_id: int | None = None,
        committed: bool = True,
    ) -> int:
        """Insert a started transaction under the next id, or a higher one; returns its row.

        The id is used up at once. Not ``committed``: nobody sees the row before :meth:`commit`.

        Raises:
            ValueError: for an id that has been used up.
        """
        number = self.next_transaction_pk if transaction_id is None else transaction_id
        if number < self.next_transaction_pk:
            raise ValueError(f"transaction id {number} is used up, next is {self.next_transaction_pk}")
        row = len(self.ids)
        self.next_transaction_pk = number + 1
        self.ids.append(number)
        self.connector_of.append(connector)
        self.tag_text_of.append(tag_text)
        self.start_ms.append(start_ms)
        self.start_wh.append(start_wh)
        self.start_event_ms.append(event_ms)
        self.stop_ms.append(UNSET)
        self.stop_wh.append(UNSET)
        self.stop_event_ms.append(UNSET)
        self.actor.append(OPEN)
        self.reason.append(0)
        self.delivered_wh.append(UNSET)
        self.ended.append(0)
        self.alive.append(0)
        self.uncommitted.add(row)
        if committed:
            self.commit(row)
        return row

    def commit(self, row: int) -> None:
        """The database transaction that inserted a row ends: everybody sees it from now on."""
        self.uncommitted.remove(row)
        self.alive[row] = 1
        self.alive_count += 1
        self.open_rows.add(row)
        if self.start_ms[row] != UNSET:
            self.by_start.add(self.start_ms[row], row)

    def roll_back(self, row: int) -> None:
        """It ends without having inserted anything; the id stays used up."""
        self.uncommitted.remove(row)
        self.rolled_back.add(row)

    def uncommitted_row(self, transaction_id: int) -> int:
        """The row of a transaction that is not committed yet.

        Raises:
            UnknownTransactionError: when there is none with this id.
        """
        row = next((row for row in self.uncommitted if self.ids[row] == transaction_id), None)
        if row is None:
            raise UnknownTransactionError(transaction_id)
        return row

    def set_stop(
        self, row: int, stop_ms: int, stop_wh: int, reason: str | None, actor: int, event_ms: int
    ) -> None:
        """Make this the stop that is shown."""
        if self.stop_ms[row] != UNSET:
            self.by_stop.discard(self.stop_ms[row], row)
        self.stop_ms[row] = stop_ms
        self.stop_wh[row] = stop_wh
        self.stop_event_ms[row] = event_ms
        self.actor[row] = actor
        self.reason[row] = self.reason_index(reason)
        self.by_stop.add(stop_ms, row)
        self.open_rows.discard(row)

    def reason_index(self, reason: str | None) -> int:
        """Index of a stop reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def _wait_for(self, rows: Iterable[int]) -> None:
        """What is deleted by cascade is locked by those who insert it: they commit first."""
        for row in list(rows):
            self.commit(row)

    def remove(self, row: int) -> None:
        """Delete a transaction; the truth about it stays in the ledger."""
        if not self.alive[row]:
            return
        self.alive[row] = 0
        self.alive_count -= 1
        self.open_rows.discard(row)
        if self.start_ms[row] != UNSET:
            self.by_start.discard(self.start_ms[row], row)
        if self.stop_ms[row] != UNSET:
            self.by_stop.discard(self.stop_ms[row], row)
        connector = self.connector_of[row]
        orphans = self.values_of_transaction.pop(self.ids[row], [])
        if orphans:
            kept = [v for v in self.values_on_connector[connector] if v.transaction_pk != self.ids[row]]
            kept += [value._replace(transaction_pk=None) for value in orphans]
            self.values_on_connector[connector] = kept

    def inject(self, raw: dict[str, Any], transaction_id: int | None = None) -> int:
        """Show this object, whatever is wrong with it, as a transaction; returns its id.

        An existing id gets a new face; without an id the next one is taken. Filters by type, time,
        charge box and tag work as far as the object's own fields allow.
        """
        row = None if transaction_id is None else self.row_of(transaction_id)
        if row is None:
            connector_id = raw.get("connectorId")
            connector = self.connector(
                str(raw.get("chargeBoxId") or "CP-INJECTED"),
                connector_id if isinstance(connector_id, int) else 1,
                numbers_used_always=False,
            )
            text = self.tag_text(str(raw.get("ocppIdTag") or ""))
            start_ms = _lenient_ms(raw.get("startTimestamp"))
            row = self.insert(connector, text, start_ms, UNSET, UNSET, transaction_id=transaction_id)
        self.raw[row] = raw
        if raw.get("stopTimestamp") is None:
            if self.stop_ms[row] != UNSET:
                self.by_stop.discard(self.stop_ms[row], row)
                self.stop_ms[row] = UNSET
            self.open_rows.add(row)
        else:
            stop_ms = _lenient_ms(raw["stopTimestamp"])
            self.set_stop(row, max(stop_ms, 0), UNSET, None, STATION, UNSET)
        return self.ids[row]

    def next_on_connector(self, row: int) -> int | None:
        """The transaction that started next on the same connector, by the charge point's clock."""
        if self.start_ms[row] == UNSET:
            return None
        connector = self.connector_of[row]
        later = self.by_start.after(self.start_ms[row])
        return next((other for other in later if self.connector_of[other] == connector), None)

    # -- meter values --------------------------------------------------------------------------

    def add_value(self, connector: int, value: MeterValue) -> None:
        """Store a meter value."""
        self.values_on_connector.setdefault(connector, []).append(value)
        if value.transaction_pk is not None:
            self.values_of_transaction.setdefault(value.transaction_pk, []).append(value)

    # -- truth ---------------------------------------------------------------------------------

    def ledger(self) -> Iterator[LedgerEntry]:
        """Every transaction that ever was, with what was really delivered."""
        yield from self.lost
        for row in range(len(self.ids)):
            if row not in self.uncommitted and row not in self.rolled_back:
                yield self._entry(row)

    def _entry(self, row: int) -> LedgerEntry:
        connector = self.connectors[self.connector_of[row]]
        return LedgerEntry(
            transaction_id=self.ids[row],
            charge_box_id=connector.charge_box_id,
            connector_id=connector.connector_id,
            id_tag=self.tag_texts[self.tag_text_of[row]],
            started_ms=_or_none(self.start_ms[row]),
            start_wh=_or_none(self.start_wh[row]),
            delivered_wh=_or_none(self.delivered_wh[row]),
            stopped=bool(self.ended[row]),
            visible=bool(self.alive[row]),
        )


def _or_none(number: int) -> int | None:
    return None if number == UNSET else number


def _lenient_ms(value: Any) -> int:
    try:
        return to_ms(value) if isinstance(value, str) else UNSET
    except ValueError:
        return UNSET
