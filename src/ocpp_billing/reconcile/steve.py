"""StEvE's side: which sessions it holds that stopped in a window, piece by piece, on every release."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

from ocpp_billing.steve.discovery import NIGHTLY_REACH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.reconcile.pieces import Piece
    from ocpp_billing.steve.capabilities import Capabilities
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.wire import MalformedRow, ReportRow, Transaction

# Where a call carries one id only, so many sessions that no window showed are asked for.
MOST_SINGLES: Final = 200
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Stop:
    """A session as StEvE shows it now. ``stopped_at`` and ``stop_wh`` are None while it is active."""

    steve_id: int
    id_tag: str
    started_at: datetime | None
    start_wh: int
    stopped_at: datetime | None
    stop_wh: int | None

    @property
    def energy_wh(self) -> int | None:
        """What the registers say; None while it is active."""
        return None if self.stop_wh is None else self.stop_wh - self.start_wh


@dataclass(slots=True)
class SteveSide:
    """What StEvE holds of a piece of the window.

    Attributes:
        stops: sessions that stopped in the window, by id, and others that were asked for by id.
        gone: ids that were asked for and are not there.
    """

    stops: dict[int, Stop] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)


class SteveReader:
    """Reads the sessions that stopped in a window, a piece of it at a time.

    From 3.12 on StEvE's report of stops says exactly that. On 3.8 and 3.9 a window of stopped sessions
    compares stops, too (never one of all types, which returns the whole history there). All others compare
    starts: those are read from five weeks earlier on, so a session that lasted longer, or that began by a
    charger's clock of 1970, is only found where the ledger knows it (:meth:`ask_for`). Where it is not known
    which of the two a window compares (3.8 to 3.10), each piece is read from five weeks earlier on, which
    shows all that stopped in it either way.

    Attributes:
        basis: the time by which pieces are told apart.
        first: where the first piece begins.
        not_asked: how many ids would have to be asked for one by one, and were too many.
    """

    def __init__(self, steve: SteveClient, capabilities: Capabilities, from_: datetime, to: datetime) -> None:
        self._steve = steve
        self._capabilities = capabilities
        self._from, self._to = from_, to
        by_start = capabilities.window_basis == "start" and not capabilities.csv_report
        self.basis: Literal["stop", "start"] = "start" if by_start else "stop"
        self.first = from_ - NIGHTLY_REACH if by_start else from_
        is_unknown = capabilities.window_basis is None and not capabilities.csv_report
        self._earlier = NIGHTLY_REACH if is_unknown else timedelta()
        self.not_asked = 0
        self._asked_singly = 0
        self._unreadable: set[str] = set()

    @property
    def unreadable(self) -> int:
        """Rows that could not be read so far."""
        return len(self._unreadable)

    def read(self, piece: Piece) -> SteveSide:
        """Read the sessions of a piece that stopped in the window.

        Raises:
            SteveError: when StEvE cannot be asked.
        """
        side = SteveSide()
        if self._capabilities.csv_report:
            report = self._steve.report_csv(piece.begin, piece.end)
            self._set_aside(report.malformed)
            shown = [stop for row in report.rows if (stop := self._of_report(row)) is not None]
        else:
            answer = self._steve.transactions(
                type=self._capabilities.window_type, from_=piece.begin - self._earlier, to=piece.end
            )
            self._set_aside(answer.malformed)
            shown = [_stop(row) for row in answer.rows]
        for stop in shown:
            if self.stopped_in_window(stop) and piece.begin <= self._instant_of(stop) < piece.end:
                side.stops[stop.steve_id] = stop
        return side

    def ask_for(self, side: SteveSide, ids: Sequence[int]) -> None:
        """Ask by id for sessions that the ledger has and the piece did not show.

        Raises:
            SteveError: when StEvE cannot be asked.
        """
        asked = list(ids)
        if not self._capabilities.id_lists:
            asked = asked[: max(MOST_SINGLES - self._asked_singly, 0)]
            self._asked_singly += len(asked)
        self.not_asked += len(ids) - len(asked)
        answer = self._steve.transactions_by_id(asked, id_lists=self._capabilities.id_lists)
        for row in answer.rows:
            side.stops[row.steve_id] = _stop(row)
        unreadable = {row.steve_id for row in answer.malformed}
        side.gone = set(asked) - side.stops.keys() - unreadable

    def stopped_in_window(self, stop: Stop) -> bool:
        """Whether a session stopped in the window."""
        return stop.stopped_at is not None and self._from <= stop.stopped_at < self._to

    def is_in_another_piece(self, stop: Stop, piece: Piece) -> bool:
        """Whether another piece shows this session that was asked for by id: there it is compared."""
        instant = self._instant_of(stop)
        return (
            self.stopped_in_window(stop)
            and self.first <= instant < self._to
            and not piece.begin <= instant < piece.end
        )

    def _instant_of(self, stop: Stop) -> datetime:
        instant = stop.stopped_at if self.basis == "stop" else stop.started_at
        return instant or _BEFORE_ALL

    def _of_report(self, row: ReportRow) -> Stop | None:
        if not (_INTEGER.fullmatch(row.start_value) and _INTEGER.fullmatch(row.stop_value)):
            self._unreadable.add(str(row.steve_id))
            return None
        return Stop(
            row.steve_id,
            row.id_tag,
            row.started_at,
            int(row.start_value),
            row.stopped_at,
            int(row.stop_value),
        )

    def _set_aside(self, malformed: Sequence[MalformedRow]) -> None:
        self._unreadable |= {row.raw if row.steve_id is None else str(row.steve_id) for row in malformed}


def _stop(row: Transaction) -> Stop:
    return Stop(row.steve_id, row.id_tag, row.started_at, row.start_wh, row.stopped_at, row.stop_wh)
