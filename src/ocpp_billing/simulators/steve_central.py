"""The central system: what StEvE does with what charge points tell it, and with an operator's stop.

Each rule names the release it holds for; see :mod:`ocpp_billing.simulators.steve_release`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ocpp_billing.simulators.steve_store import (
    MANUAL,
    OPEN,
    STATION,
    UNSET,
    MeterValue,
    Sample,
    SteveStore,
    Tag,
    UnknownTransactionError,
    to_ms,
)
from ocpp_billing.simulators.steve_time import iso_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from ocpp_billing.simulators.steve_release import Release

FIRST_STORABLE_MS = 1000
LAST_STORABLE_MS = 2**31 * 1000 - 1
"""The range of MariaDB's TIMESTAMP: 1970-01-01T00:00:01 … 2038-01-19T03:14:07.999 UTC."""

TOLERANCE_MS = 5 * 60 * 1000
ENERGY_UNITS = (None, "", "Wh", "kWh")
ENERGY_MEASURANDS = (None, "Energy.Active.Import.Register")


class CallError(Exception):
    """StEvE answered the charge point with a CALLERROR; nothing was stored."""


@dataclass(frozen=True, slots=True)
class StartReply:
    """The answer to a StartTransaction."""

    transaction_id: int
    id_tag_status: str


class CentralSystem:
    """The application's rules on top of a :class:`SteveStore`."""

    def __init__(self, release: Release, now: Callable[[], datetime]) -> None:
        self.release = release
        self.store = SteveStore()
        self._now = now
        self._data_to_store: dict[int, list[Sample]] = {}

    def now_ms(self) -> int:
        """The server's own time."""
        return to_ms(self._now())

    def event_ms(self) -> int:
        """The time of arrival as the release stores it."""
        now = self.now_ms()
        return now - now % 1000 if self.release.whole_second_events else now

    # -- charge points -------------------------------------------------------------------------

    def id_tag_status(self, id_tag: str) -> str:
        """What a charge point is told about a tag; sessions are recorded whatever it is."""
        tag = self.store.find_tag(id_tag)
        if tag is None:
            return "Invalid"
        if tag.max_active == 0:
            return "Blocked"
        if tag.expiry_ms is not None and tag.expiry_ms <= self.now_ms():
            return "Expired"
        if 0 < tag.max_active <= self.store.active_counts().get(tag.pk, 0):
            return "ConcurrentTx"
        return "Accepted"

    def start(
        self,
        charge_box: str,
        connector: int,
        id_tag: str,
        at: datetime | str | int,
        meter_wh: int,
        *,
        committed: bool = True,
    ) -> StartReply:
        """A StartTransaction.

        The same start again (connector, tag, time and register) gives the same id, even after the
        transaction was stopped. An unknown tag is registered as blocked. Every start uses up a tag
        number, on ≤3.12 also a connector number.

        Not ``committed``: the id is given out, but the API does not show the transaction before
        :meth:`SteveStore.commit`; later starts, with higher ids, may be seen first. The charge point hears
        nothing until then.

        Raises:
            CallError: the start time cannot be stored: 1970-01-01T00:00:00 and before everywhere,
                after 2038 from 3.8 on (before, it becomes null).
        """
        store, start_ms = self.store, to_ms(at)
        if start_ms < FIRST_STORABLE_MS:
            raise CallError("InternalError: the timestamp cannot be stored")
        if start_ms > LAST_STORABLE_MS:
            if not self.release.late_start_is_null:
                raise CallError("InternalError: the timestamp cannot be stored")
            start_ms = UNSET
        event_ms = self.event_ms()
        connector_index = self._connector(charge_box, connector)
        status = self.id_tag_status(id_tag)
        self._register_tag(id_tag, to_ms(at))
        again = self._same_start(connector_index, id_tag, start_ms, meter_wh)
        if again is not None:
            return StartReply(store.ids[again], status)
        text = store.tag_text(id_tag)
        row = store.insert(connector_index, text, start_ms, meter_wh, event_ms, committed=committed)
        return StartReply(store.ids[row], status)

    def _connector(self, charge_box: str, connector: int) -> int:
        return self.store.connector(charge_box, connector, numbers_used_always=not self.release.evse)

    def _register_tag(self, id_tag: str, start_ms: int) -> None:
        if self.store.find_tag(id_tag) is not None:
            self.store.next_tag_pk += 1
            return
        note = (
            f"This unknown idTag was used in a transaction that started @ {iso_ms(start_ms)}. "
            f"It was reported @ {iso_ms(self.now_ms())}."
        )
        self.store.add_tag(id_tag, max_active=0, note=note)

    def _same_start(self, connector: int, id_tag: str, start_ms: int, meter_wh: int) -> int | None:
        store = self.store
        tag = store.find_tag(id_tag)
        for row in store.by_start.between(start_ms, start_ms) if start_ms != UNSET else ():
            same_tag = tag is not None and store.tag_text_pks[store.tag_text_of[row]] == tag.pk
            if store.connector_of[row] == connector and store.start_wh[row] == meter_wh and same_tag:
                return row
        return None

    def meter_values(
        self, charge_box: str, connector: int, samples: Iterable[Sample], transaction_id: int | None = None
    ) -> bool:
        """A MeterValues message; False when StEvE drops it.

        ≥3.14 drops what belongs to an unknown transaction or one that its station has stopped. An id
        of 0 or less counts as none.
        """
        owner = transaction_id if transaction_id is not None and transaction_id > 0 else None
        connector_index = self._connector(charge_box, connector)
        if owner is not None and self.release.drops_late_meter_values:
            row = self.store.row_of(owner)
            if row is None or self.store.actor[row] == STATION:
                return False
        for sample in samples:
            self.store.add_value(connector_index, MeterValue.of(sample, owner))
        return True

    def stop(
        self,
        transaction_id: int,
        charge_box: str,
        at: datetime | str | int,
        meter_wh: int,
        *,
        id_tag: str | None = None,
        reason: str | None = "Local",
        transaction_data: Iterable[Sample] = (),
        data_stored: bool = True,
        delivered_wh: int | None = None,
    ) -> str | None:
        """A StopTransaction; the charge point is told that all is well, whatever happens.

        Args:
            transaction_id: as given at the start.
            charge_box: who sends it.
            at: the charge point's time.
            meter_wh: the register.
            id_tag: who stopped; None = not sent.
            reason: OCPP 1.6 reason; None = not sent.
            transaction_data: meter values sent along.
            data_stored: False: the stop can be seen already, these values only after
                :meth:`store_transaction_data`, as StEvE writes one after the other.
            delivered_wh: the truth for the ledger; without it, what this charge box says counts.

        Returns:
            None when it was stored, else why it went to the failed stops and the API shows no change.
        """
        store, stop_ms, samples = self.store, to_ms(at), list(transaction_data)
        box_pk, _ = store.charge_box(charge_box)
        row = store.row_of(transaction_id)
        own = row is not None and store.connectors[store.connector_of[row]].charge_box_pk == box_pk
        if row is not None and (own or delivered_wh is not None):
            self._note_truth(row, meter_wh, delivered_wh)
        error = self._stop_error(row, box_pk, stop_ms, meter_wh, id_tag, samples)
        if row is None or error is not None:
            self._set_aside(transaction_id, stop_ms, meter_wh, error, charge_box)
            return error
        event_ms = self.event_ms()
        # The view shows the stop with the latest time of arrival.
        if store.actor[row] == OPEN or event_ms >= store.stop_event_ms[row]:
            store.set_stop(row, stop_ms, meter_wh, reason, STATION, event_ms)
        self._data_to_store.setdefault(transaction_id, []).extend(samples)
        if data_stored:
            self.store_transaction_data(transaction_id)
        return None

    def store_transaction_data(self, transaction_id: int) -> None:
        """The meter values that came with a stop can be seen now, too."""
        row = self.store.row_of(transaction_id)
        for sample in self._data_to_store.pop(transaction_id, ()):
            if row is not None:
                self.store.add_value(self.store.connector_of[row], MeterValue.of(sample, transaction_id))

    def _set_aside(
        self,
        transaction_id: int,
        stop_ms: int | None,
        stop_wh: int,
        why: str | None,
        charge_box: str | None = None,
    ) -> None:
        failed = {"transaction_id": transaction_id, "charge_box": charge_box, "stop_ms": stop_ms}
        self.store.failed_stops.append({**failed, "stop_wh": stop_wh, "why": why})

    def _note_truth(self, row: int, meter_wh: int, delivered_wh: int | None) -> None:
        store = self.store
        store.ended[row] = 1
        if delivered_wh is not None:
            store.delivered_wh[row] = delivered_wh
        elif meter_wh >= store.start_wh[row] != UNSET:
            store.delivered_wh[row] = meter_wh - store.start_wh[row]

    def _stop_error(
        self,
        row: int | None,
        box_pk: int,
        stop_ms: int,
        meter_wh: int,
        id_tag: str | None,
        samples: list[Sample],
    ) -> str | None:
        """Why StEvE sets the stop aside, or None."""
        store = self.store
        if row is None:
            return "unknown transaction"
        if not FIRST_STORABLE_MS <= stop_ms <= LAST_STORABLE_MS:
            return "the stop time cannot be stored"
        if self.release.validates_stops:
            error = self._invalid_stop(row, box_pk, stop_ms, meter_wh, id_tag)
            if error is None and self.release.validates_transaction_data and samples:
                error = self._invalid_samples(row, stop_ms, samples)
            if error is not None:
                return error
        stopped = store.actor[row] != OPEN
        if stopped and self.release.whole_second_events and store.stop_event_ms[row] == self.event_ms():
            return "another stop arrived within the same second"
        return None

    def _invalid_stop(
        self, row: int, box_pk: int, stop_ms: int, meter_wh: int, id_tag: str | None
    ) -> str | None:
        store = self.store
        if store.connectors[store.connector_of[row]].charge_box_pk != box_pk:
            return "transaction of another charge box"
        if store.actor[row] == STATION:
            return "already stopped by the station"
        if store.start_ms[row] > stop_ms:
            return "stop before start"
        if stop_ms > self.now_ms() + TOLERANCE_MS:
            return "stop in the future"
        if store.start_wh[row] > meter_wh:
            return "register below the start"
        start_tag = store.tag_texts[store.tag_text_of[row]]
        tag_counts = self.release.validates_stop_tag and id_tag is not None and id_tag != start_tag
        if tag_counts and not self._tags_related(start_tag, str(id_tag)):
            return "stopped with an unrelated tag"
        return None

    def _tags_related(self, start_tag: str, stop_tag: str) -> bool:
        """Parent and child, or two children of one parent; never the same tag in another spelling."""
        first, second = self.store.find_tag(start_tag), self.store.find_tag(stop_tag)
        if first is None or second is None or first.pk == second.pk:
            return False
        if first.parent_pk is not None and first.parent_pk in {second.pk, second.parent_pk}:
            return True
        return second.parent_pk == first.pk

    def _invalid_samples(self, row: int, stop_ms: int, samples: list[Sample]) -> str | None:
        times = [to_ms(sample.at) for sample in samples]
        if max(times) > self.now_ms() + TOLERANCE_MS:
            return "meter value in the future"
        if max(times) > stop_ms + TOLERANCE_MS:
            return "meter value after the stop"
        if min(times) < self.store.start_ms[row] - TOLERANCE_MS:
            return "meter value before the start"
        return None

    # -- the operator --------------------------------------------------------------------------

    def manual_stop(self, transaction_id: int) -> None:
        """A book-keeping stop by an operator; nothing is sent to the charge point.

        Already stopped: nothing happens. Else the last energy value and its time; without one the
        start of the connector's next transaction, and its register when that is higher than ours;
        without that, our own start (no energy, no duration). Where that start is null (3.7.1), nothing comes
        next, and the database refuses a stop without time: it is set aside, the transaction stays open.

        Raises:
            UnknownTransactionError: when there is no such transaction.
        """
        store = self.store
        row = store.row_of(transaction_id)
        if row is None:
            raise UnknownTransactionError(transaction_id)
        if store.actor[row] != OPEN or row in store.raw:
            return
        stop_ms, stop_wh = store.start_ms[row], store.start_wh[row]
        last = self._last_energy_value(row)
        following = store.next_on_connector(row)
        if last is not None:
            stop_ms, stop_wh = last.at_ms, math.ceil(energy_wh(last))
        elif following is not None:
            stop_ms = store.start_ms[following]
            stop_wh = max(stop_wh, store.start_wh[following])
        if stop_ms == UNSET:
            self._set_aside(transaction_id, None, stop_wh, "a stop needs a time")
            return
        store.set_stop(row, stop_ms, stop_wh, None, MANUAL, self.event_ms())

    def _last_energy_value(self, row: int) -> MeterValue | None:
        values = self.details(row, energy_only=True)
        if not self.release.monotonic_manual_stop:
            return max(values, key=lambda value: value.at_ms, default=None)
        # A value counts when it is not below the start and either nothing has fallen so far or it is
        # at least the second of a run that does not fall. The last one that counts is taken.
        chosen, previous_wh, run, fallen = None, None, 0, False
        for value in values:
            wh = energy_wh(value)
            if previous_wh is not None and wh < previous_wh:
                fallen, run = True, 1
            else:
                run += 1
            if wh >= self.store.start_wh[row] and (run > 1 or not fallen):
                chosen = value
            previous_wh = wh
        return chosen

    # -- details -------------------------------------------------------------------------------

    def details(self, row: int, *, energy_only: bool) -> list[MeterValue]:
        """The meter values that StEvE takes for those of a transaction, in order of time.

        Its own, and what lies on the same connector between start and stop (or the next start): on
        ≤3.12 anybody's, since 3.13 only what belongs to no transaction.
        """
        store = self.store
        own = store.values_of_transaction.get(store.ids[row], [])
        found = list(own)
        if store.start_ms[row] != UNSET:
            lower, upper = store.start_ms[row], self._window_end(row)
            for value in store.values_on_connector.get(store.connector_of[row], []):
                owner = value.transaction_pk
                if owner == store.ids[row] or (owner is not None and not self.release.foreign_values_leak):
                    continue
                if lower <= value.at_ms <= upper:
                    found.append(value)
        if energy_only:
            found = [value for value in found if is_energy(value)]
        # The union of both sources drops rows that are equal in all that is shown.
        unique: dict[tuple[object, ...], MeterValue] = {}
        for value in found:
            unique.setdefault(value[:-1], value)
        return sorted(unique.values(), key=lambda value: value.at_ms)

    def _window_end(self, row: int) -> int:
        if self.store.stop_ms[row] != UNSET:
            return self.store.stop_ms[row]
        following = self.store.next_on_connector(row)
        if following is None:
            return 2**62
        # Since 3.13 the next start itself is no longer part of the window of an endless transaction.
        return self.store.start_ms[following] - (0 if self.release.foreign_values_leak else 1)

    # -- for tests: what an administrator or a broken database does ----------------------------

    def set_parent(self, id_tag: str, parent: str | None) -> Tag:
        """Give a tag another parent, keeping all else."""
        tag = self.store.find_tag(id_tag)
        if tag is None:
            raise KeyError(id_tag)
        return self.store.replace_tag(
            tag.pk, parent=parent, max_active=tag.max_active, expiry_ms=tag.expiry_ms, note=tag.note
        )

    def state(self) -> dict[str, Any]:
        """Counts and what is not visible by the API."""
        store = self.store
        return {
            "release": str(self.release),
            "transactions": store.alive_count,
            "open": len(store.open_rows),
            "tags": len(store.tags),
            "next_transaction_id": store.next_transaction_pk,
            "failed_stops": store.failed_stops,
        }


def is_energy(value: MeterValue) -> bool:
    """Whether StEvE takes a meter value for a reading of the energy register; phases are not told apart."""
    if value.unit not in ENERGY_UNITS or value.measurand not in ENERGY_MEASURANDS:
        return False
    if value.format == "SignedData":
        return False
    try:
        return math.isfinite(float(value.value))
    except ValueError:
        return False


def energy_wh(value: MeterValue) -> float:
    """The reading in Wh; floating point because StEvE computes so."""
    return float(value.value) * (1000 if value.unit == "kWh" else 1)
