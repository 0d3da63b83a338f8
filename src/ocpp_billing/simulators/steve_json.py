"""StEvE's JSON: the fields and their order by release, and rows of transactions made fast."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ocpp_billing.simulators.steve_store import ACTORS, UNSET
from ocpp_billing.simulators.steve_time import iso_ms

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from ocpp_billing.simulators.steve_release import Release
    from ocpp_billing.simulators.steve_store import MeterValue, SteveStore, Tag

ROWS_PER_CHUNK = 2000


def dumps(value: Any) -> str:
    """Compact JSON with its characters as they are, like Jackson's."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def ordered(value: dict[str, Any], release: Release) -> dict[str, Any]:
    """An object's keys in the order of the release, given in the order of declaration."""
    return dict(sorted(value.items())) if release.sorted_keys else value


def tag_object(tag: Tag, store: SteveStore, active: int, release: Release) -> dict[str, Any]:
    """A tag with ``active`` open transactions as the API shows it."""
    parent = store.tags.get(tag.parent_pk) if tag.parent_pk is not None else None
    value: dict[str, Any] = {"ocppTagPk": tag.pk, "idTag": tag.id_tag}
    if release.tag_user:
        value["userPk"] = tag.user_pk
    value |= {
        "parentOcppTagPk": tag.parent_pk,
        "parentIdTag": parent.id_tag if parent else None,
        "inTransaction": active > 0,
        "blocked": tag.max_active == 0,
        "expiryDate": None if tag.expiry_ms is None else iso_ms(tag.expiry_ms),
        "maxActiveTransactionCount": tag.max_active,
        "activeTransactionCount": active,
        "note": tag.note,
    }
    return ordered(value, release)


def meter_value_object(value: MeterValue) -> dict[str, Any]:
    """A meter value of the details; its keys are never sorted."""
    return {
        "valueTimestamp": iso_ms(value.at_ms),
        "value": value.value,
        "readingContext": value.context,
        "format": value.format,
        "measurand": value.measurand,
        "location": value.location,
        "unit": value.unit,
        "phase": value.phase,
    }


class TransactionWriter:
    """Turns rows into JSON text; the parts that repeat are made once."""

    def __init__(self, store: SteveStore, release: Release) -> None:
        self._store = store
        self._release = release
        self._connectors: list[tuple[str, str]] = []
        self._tags: dict[int, tuple[str, str, str]] = {}
        self._tag_version = -1

    def belongs_to(self, store: SteveStore) -> bool:
        """Whether it writes the rows of this very store (another one comes with a restore)."""
        return self._store is store

    def row(self, row: int) -> str:
        """One transaction."""
        store = self._store
        raw = store.raw.get(row)
        if raw is not None:
            return dumps(raw)
        box_id, connector = self._connector(store.connector_of[row])
        tag_pk, id_tag, user = self._tag(store.tag_text_of[row])
        start_ms, start_wh = store.start_ms[row], store.start_wh[row]
        start = "null" if start_ms == UNSET else f'"{iso_ms(start_ms)}"'
        value = "null" if start_wh == UNSET else f'"{start_wh}"'
        if row in store.open_rows:
            stop = stop_value = reason = actor = "null"
        else:
            stop = f'"{iso_ms(store.stop_ms[row])}"'
            stop_value = f'"{store.stop_wh[row]}"'
            reason_text = store.reasons[store.reason[row]]
            reason = "null" if reason_text is None else dumps(reason_text)
            actor = f'"{ACTORS[store.actor[row]]}"'
        if self._release.sorted_keys:
            return (
                f'{{"chargeBoxId":{box_id},{connector},"id":{store.ids[row]},"ocppIdTag":{id_tag},'
                f'"ocppTagPk":{tag_pk},"startTimestamp":{start},"startValue":{value},'
                f'"stopEventActor":{actor},"stopReason":{reason},"stopTimestamp":{stop},'
                f'"stopValue":{stop_value},"userId":{user}}}'
            )
        user_field = f'"userId":{user},' if self._release.transaction_user else ""
        return (
            f'{{"id":{store.ids[row]},{connector},"ocppTagPk":{tag_pk},"chargeBoxId":{box_id},'
            f'"ocppIdTag":{id_tag},{user_field}"startValue":{value},"startTimestamp":{start},'
            f'"stopValue":{stop_value},"stopReason":{reason},"stopTimestamp":{stop},'
            f'"stopEventActor":{actor}}}'
        )

    def array(self, rows: Sequence[int]) -> bytes:
        """Several transactions as one JSON array."""
        return f"[{','.join(map(self.row, rows))}]".encode()

    def chunks(self, rows: Sequence[int], lock: threading.RLock) -> Iterator[bytes]:
        """The same array in pieces, made while they are sent; the lock is held only per piece."""
        yield b"["
        for first in range(0, len(rows), ROWS_PER_CHUNK):
            with lock:
                piece = ",".join(map(self.row, rows[first : first + ROWS_PER_CHUNK]))
            yield (("," if first else "") + piece).encode()
        yield b"]"

    def _connector(self, index: int) -> tuple[str, str]:
        while index >= len(self._connectors):
            connector = self._store.connectors[len(self._connectors)]
            pk, number = f'"chargeBoxPk":{connector.charge_box_pk}', f'"connectorId":{connector.connector_id}'
            both = f"{pk},{number}" if self._release.sorted_keys else f"{number},{pk}"
            self._connectors.append((dumps(connector.charge_box_id), both))
        return self._connectors[index]

    def _tag(self, index: int) -> tuple[str, str, str]:
        if self._tag_version != self._store.tag_version:
            self._tags.clear()
            self._tag_version = self._store.tag_version
        found = self._tags.get(index)
        if found is None:
            pk = self._store.tag_text_pks[index]
            user = self._store.tags[pk].user_pk if pk is not None else None
            found = self._tags[index] = (dumps(pk), dumps(self._store.tag_texts[index]), dumps(user))
        return found
