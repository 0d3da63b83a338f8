"""StEvE's side: which sessions it holds that stopped in a window, on every release."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from ocpp_billing.steve.discovery import NIGHTLY_REACH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from ocpp_billing.steve.capabilities import Capabilities
    from ocpp_billing.steve.client import SteveClient

# Windows are read in pieces, so that neither StEvE nor we hold a year in memory.
PIECE: Final = timedelta(days=7)
# Where a call carries one id only, so many sessions that no window showed are asked for.
MOST_SINGLES: Final = 200
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Stop:
    """A session as StEvE shows it now. ``stopped_at`` and ``energy_wh`` are None while it is active."""

    steve_id: int
    stopped_at: datetime | None
    energy_wh: int | None


@dataclass(slots=True)
class SteveSide:
    """What StEvE holds.

    Attributes:
        stops: sessions that stopped in the window, by id, and others that were asked for by id.
        unreadable: rows that could not be read.
        gone: ids that were asked for and are not there.
        not_asked: ids that would have to be asked for one by one, and were too many.
    """

    stops: dict[int, Stop] = field(default_factory=dict)
    unreadable: int = 0
    gone: set[int] = field(default_factory=set)
    not_asked: set[int] = field(default_factory=set)


def read_stops(
    steve: SteveClient,
    capabilities: Capabilities,
    from_: datetime,
    to: datetime,
    say: Callable[[str], None],
) -> SteveSide:
    """Read the sessions that stopped in ``[from_, to)``.

    From 3.12 on StEvE's report of stops says exactly that. On 3.8 and 3.9 a window of stopped sessions
    compares stops, too (never one of all types, which returns the whole history there). All others compare
    starts: those are read from five weeks earlier on, so a session that lasted longer, or that began by a
    charger's clock of 1970, is only found where the ledger knows it (:func:`ask_for`).

    Raises:
        SteveError: when StEvE cannot be asked.
    """
    side = SteveSide()
    if capabilities.csv_report:
        report = steve.report_csv(from_, to)
        side.unreadable = len(report.malformed)
        for row in report.rows:
            if not (_INTEGER.fullmatch(row.start_value) and _INTEGER.fullmatch(row.stop_value)):
                side.unreadable += 1
            elif row.stopped_at is not None and from_ <= row.stopped_at < to:
                energy_wh = int(row.stop_value) - int(row.start_value)
                side.stops[row.steve_id] = Stop(row.steve_id, row.stopped_at, energy_wh)
        return side
    begin = from_ if capabilities.window_basis == "stop" else from_ - NIGHTLY_REACH
    while begin < to:
        end = min(begin + PIECE, to)
        answer = steve.transactions(type=capabilities.window_type, from_=begin, to=end)
        side.unreadable += len(answer.malformed)
        for shown in answer.rows:
            if shown.stopped_at is not None and shown.stop_wh is not None and from_ <= shown.stopped_at < to:
                energy_wh = shown.stop_wh - shown.start_wh
                side.stops[shown.steve_id] = Stop(shown.steve_id, shown.stopped_at, energy_wh)
        say(f"StEvE read up to {end:%Y-%m-%d}, {len(side.stops):,} sessions")
        begin = end
    return side


def ask_for(side: SteveSide, steve: SteveClient, capabilities: Capabilities, ids: Sequence[int]) -> None:
    """Ask by id for sessions that the ledger has and no window showed.

    Raises:
        SteveError: when StEvE cannot be asked.
    """
    asked = list(ids) if capabilities.id_lists else list(ids)[:MOST_SINGLES]
    side.not_asked = set(ids) - set(asked)
    answer = steve.transactions_by_id(asked, id_lists=capabilities.id_lists)
    for row in answer.rows:
        energy_wh = None if row.stop_wh is None else row.stop_wh - row.start_wh
        side.stops[row.steve_id] = Stop(row.steve_id, row.stopped_at, energy_wh)
    unreadable = {row.steve_id for row in answer.malformed}
    side.gone = set(asked) - side.stops.keys() - unreadable
