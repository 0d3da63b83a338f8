"""A StEvE server for tests, the demo and benchmarks: any release from 3.6 to 3.14.1, warts included.

Read in this order: ``steve_release`` (what differs), ``steve_store`` (the tables), ``steve_central`` (what
charge points and operators may do), ``steve_query`` and ``steve_api`` (what an API client sees).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ocpp_billing.simulators.server import Request, Response, SimulatedServer
from ocpp_billing.simulators.steve_api import SteveApi
from ocpp_billing.simulators.steve_central import CallError, CentralSystem, StartReply
from ocpp_billing.simulators.steve_control import control
from ocpp_billing.simulators.steve_cost import CostModel
from ocpp_billing.simulators.steve_generator import Generated, generate
from ocpp_billing.simulators.steve_recording import Recording, State, recorded_store, recording_offset
from ocpp_billing.simulators.steve_release import Release
from ocpp_billing.simulators.steve_store import LedgerEntry, Sample, SteveStore, StoreError, Tag, to_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocpp_billing.simulators.steve_operations import RemoteOperation

__all__ = [
    "CallError",
    "CostModel",
    "Generated",
    "LedgerEntry",
    "Recording",
    "Release",
    "Sample",
    "StartReply",
    "SteveSimulator",
    "StoreError",
    "recording_offset",
]

DEFAULT_USERNAME = "admin"
DEFAULT_PASSWORD = "steve-secret"  # noqa: S105 - of a simulator on loopback
DEFAULT_HEADER = "STEVE-API-KEY"

Instant = datetime | str | int
"""An aware datetime, an ISO string (UTC without a zone) or milliseconds since 1970."""


class SteveSimulator(SimulatedServer):
    """A StEvE of one release, empty at first.

    Every method of the charge-point side exists under ``/_sim/`` as well (see ``steve_control``),
    takes the lock, and uses :meth:`now` as the time of arrival. On ≤3.12 those times have whole
    seconds: two stops of one transaction in the same second, even one by the operator and one by the
    station, leave the first standing, so move the clock on between them.
    """

    def __init__(
        self,
        release: str = "3.14.1",
        *,
        username: str = DEFAULT_USERNAME,
        password: str = DEFAULT_PASSWORD,
        api_key_header: str = DEFAULT_HEADER,
        api_enabled: bool = True,
        is_open: bool = False,
        context_path: str = "/steve",
        cost_model: CostModel | bool | float = False,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Open the port; :meth:`start` or :meth:`serve_forever` serves it.

        Args:
            release: minor or full version; a minor means its last patch.
            username: the web user (≥3.8).
            password: their API password (≥3.8), or the API key (≤3.7).
            api_key_header: name of the header (≤3.7).
            api_enabled: False: no key or API password was ever set.
            is_open: nobody is asked for credentials: the development and test profiles up to 3.7, or a proxy
                that adds them.
            context_path: ``/steve`` by default, may be empty.
            cost_model: take as long as a real server; a number multiplies the times.
            host: interface to listen on.
            port: 0 = any free one.

        Raises:
            ValueError: for an unknown release or a context path without a leading slash.
            OSError: when the port is taken.
        """
        if context_path and (not context_path.startswith("/") or context_path.endswith("/")):
            raise ValueError(f"context path {context_path!r} must be empty or begin, not end, with a slash")
        self.release = Release.parse(release)
        super().__init__(host=host, port=port)
        self.central = CentralSystem(self.release, self.now)
        self.api = SteveApi(
            self.central,
            self.lock,
            username=username,
            password=password,
            api_key_header=api_key_header,
            api_enabled=api_enabled,
            is_open=is_open,
            context_path=context_path,
            cost_model=_cost_model(cost_model),
        )
        self._snapshots: dict[str, SteveStore] = {}

    @property
    def store(self) -> SteveStore:
        """The tables as they are now."""
        return self.central.store

    @property
    def base_url(self) -> str:
        """Address with the context path: what ``STEVE_API_URL`` should be."""
        return f"{self.url}{self.api.context_path}"

    @property
    def online(self) -> set[str]:
        """Charge boxes that take remote operations; empty at first."""
        return self.api.online

    @property
    def remote_operations(self) -> list[RemoteOperation]:
        """Remote operations that reached a charge box, in order."""
        return self.api.operations

    # -- charge points -------------------------------------------------------------------------

    def begin(
        self,
        charge_box: str,
        connector: int,
        id_tag: str,
        at: Instant,
        meter_wh: int,
        *,
        committed: bool = True,
    ) -> StartReply:
        """A StartTransaction with StEvE's whole answer; see :meth:`CentralSystem.start`."""
        with self.lock:
            return self.central.start(charge_box, connector, id_tag, at, meter_wh, committed=committed)

    def start_transaction(
        self,
        charge_box: str,
        connector: int,
        id_tag: str,
        at: Instant,
        meter_wh: int,
        *,
        committed: bool = True,
    ) -> int:
        """A StartTransaction; the transaction id, which shows up only after :meth:`commit` if asked for so.

        Raises:
            CallError: when the start time cannot be stored.
        """
        reply = self.begin(charge_box, connector, id_tag, at, meter_wh, committed=committed)
        return reply.transaction_id

    def commit(self, transaction_id: int) -> None:
        """A start that was not committed yet is: the API shows it from now on.

        Raises:
            UnknownTransactionError: when there is none with this id.
        """
        with self.lock:
            self.store.commit(self.store.uncommitted_row(transaction_id))

    def roll_back(self, transaction_id: int) -> None:
        """A start that was not committed yet never will be: its id stays a hole in the numbering.

        Raises:
            UnknownTransactionError: when there is none with this id.
        """
        with self.lock:
            self.store.roll_back(self.store.uncommitted_row(transaction_id))

    def meter_values(
        self, charge_box: str, connector: int, samples: Iterable[Sample], transaction_id: int | None = None
    ) -> bool:
        """A MeterValues message; False when StEvE drops it."""
        with self.lock:
            return self.central.meter_values(charge_box, connector, samples, transaction_id)

    def stop_transaction(
        self,
        transaction_id: int,
        charge_box: str,
        at: Instant,
        meter_wh: int,
        *,
        id_tag: str | None = None,
        reason: str | None = "Local",
        transaction_data: Iterable[Sample] = (),
        data_stored: bool = True,
        delivered_wh: int | None = None,
    ) -> str | None:
        """A StopTransaction; None when it was stored, else why it was set aside unseen."""
        with self.lock:
            return self.central.stop(
                transaction_id,
                charge_box,
                at,
                meter_wh,
                id_tag=id_tag,
                reason=reason,
                transaction_data=transaction_data,
                data_stored=data_stored,
                delivered_wh=delivered_wh,
            )

    def store_transaction_data(self, transaction_id: int) -> None:
        """The meter values that came with a stop can be seen now, too."""
        with self.lock:
            self.central.store_transaction_data(transaction_id)

    def note_delivered(self, transaction_id: int, delivered_wh: int, *, ended: bool = True) -> None:
        """Tell the ledger what was really delivered, whatever StEvE is told.

        Raises:
            KeyError: for an unknown transaction.
        """
        with self.lock:
            row = self.store.row_of(transaction_id)
            if row is None:
                raise KeyError(transaction_id)
            self.store.delivered_wh[row] = delivered_wh
            self.store.ended[row] = ended

    # -- operators and administrators ----------------------------------------------------------

    def manual_stop(self, transaction_id: int) -> None:
        """An operator's book-keeping stop (a button up to 3.11, also in the API from 3.12)."""
        with self.lock:
            self.central.manual_stop(transaction_id)

    def add_tag(
        self, id_tag: str, *, parent: str | None = None, max_active: int = -1, note: str | None = None
    ) -> Tag:
        """Register a tag, unlimited unless said otherwise."""
        with self.lock:
            return self.store.add_tag(id_tag, parent=parent, max_active=max_active, note=note)

    def set_parent(self, id_tag: str, parent: str | None) -> Tag:
        """Give a tag another parent, or none."""
        with self.lock:
            return self.central.set_parent(id_tag, parent)

    def set_user(self, id_tag: str, user_pk: int | None) -> None:
        """Give a tag to a user, or to nobody.

        Raises:
            KeyError: for an unknown tag.
        """
        with self.lock:
            self.store.set_user(self._tag(id_tag).pk, user_pk)

    def delete_tag(self, id_tag: str) -> None:
        """Delete a tag; all its transactions go with it.

        Raises:
            KeyError: for an unknown tag.
        """
        with self.lock:
            self.store.delete_tag(self._tag(id_tag).pk)

    def _tag(self, id_tag: str) -> Tag:
        tag = self.store.find_tag(id_tag)
        if tag is None:
            raise KeyError(id_tag)
        return tag

    def register_charge_box(self, charge_box: str) -> int:
        """Register a charge box; its number."""
        with self.lock:
            return self.store.charge_box(charge_box)[0]

    def delete_charge_box(self, charge_box: str) -> None:
        """Delete a charge box; all its transactions go with it."""
        with self.lock:
            self.store.delete_charge_box(charge_box)

    # -- the database --------------------------------------------------------------------------

    def skip_ids(self, count: int) -> int:
        """Leave a hole in the numbering; returns the next transaction id."""
        with self.lock:
            self.store.next_transaction_pk += count
            return self.store.next_transaction_pk

    def inject(self, raw: dict[str, Any], transaction_id: int | None = None) -> int:
        """Show this object as a transaction, whatever is wrong with it; see :meth:`SteveStore.inject`."""
        with self.lock:
            return self.store.inject(raw, transaction_id)

    def break_tag(self, id_tag: str, **fields: Any) -> None:
        """List a tag with these fields in place of its own, whatever is wrong with them; none = as it is.

        Raises:
            KeyError: for an unknown tag.
        """
        with self.lock:
            self.store.tag_faces[self._tag(id_tag).pk] = fields

    def snapshot(self, name: str = "backup") -> None:
        """Make a backup of the database."""
        with self.lock:
            self._snapshots[name] = self.store.snapshot()

    def restore(self, name: str = "backup") -> None:
        """Play a backup back: what came later is gone and its ids are given again.

        Raises:
            KeyError: when there is no such backup.
        """
        with self.lock:
            self.central.store = self.store.restored(self._snapshots[name])

    def restart_database(self) -> None:
        """Restart MySQL 5.7 or older: numbers at the end that were deleted are given out again.

        Newer databases remember the counter; there nothing happens.
        """
        with self.lock:
            self.store.restart()

    def reset(self) -> None:
        """A new, empty database: ids begin at 1. The truth about what was there is kept."""
        with self.lock:
            self.central.store = self.store.restored(SteveStore())

    def generate(
        self,
        count: int,
        seed: int = 1,
        *,
        days: float = 90,
        open_count: int | None = None,
        stuck_count: int = 0,
        tag_count: int = 50,
        end: Instant | None = None,
    ) -> Generated:
        """Append made-up sessions; see :func:`ocpp_billing.simulators.steve_generator.generate`."""
        with self.lock:
            return generate(
                self.central,
                count,
                seed,
                days=days,
                open_count=open_count,
                stuck_count=stuck_count,
                tag_count=tag_count,
                end_ms=None if end is None else to_ms(end),
            )

    def load_recording(
        self, release: str | None = None, *, state: State = "012", shift: timedelta | None = None
    ) -> None:
        """Take over the state of a recorded server, replacing all there is.

        Args:
            release: of the recording; this simulator's own by default.
            state: ``012`` before, ``end`` after the book-keeping stops.
            shift: moves every time but those of 1970; see :func:`recording_offset`.

        Raises:
            ValueError: when that release was not recorded.
        """
        recording = Recording(release or str(self.release))
        with self.lock:
            self.central.store = recorded_store(self.release, recording, state=state, shift=shift)

    # -- truth ---------------------------------------------------------------------------------

    def ledger(self) -> list[LedgerEntry]:
        """Every transaction that ever was, deleted and lost ones included."""
        with self.lock:
            return list(self.store.ledger())

    def truth(self) -> dict[int, int | None]:
        """What was really delivered in Wh, by transaction id, for what the API still shows."""
        return {e.transaction_id: e.delivered_wh for e in self.ledger() if e.visible}

    # -- HTTP ----------------------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """Answer as StEvE."""
        return self.api.handle(request)

    def handle_control(self, request: Request, command: str) -> Response | None:
        """Answer ``/_sim/…``; see :mod:`ocpp_billing.simulators.steve_control`."""
        return control(self, request, command)


def _cost_model(wanted: CostModel | bool | float) -> CostModel | None:  # noqa: FBT001 - a switch or a factor
    if isinstance(wanted, CostModel):
        return wanted
    return CostModel(float(wanted)) if wanted else None
