"""What meter values say about the end of a session, and what StEvE would make of them. Pure.

Two questions that must not be mixed up. :func:`last_register` is our own reading of the meter values: it
is what a manual stop is judged by. :func:`predict_manual_stop` foretells what a release of StEvE would
write when an operator closes the session, its weaknesses included: it is shown before anybody does that.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Final, Literal

from ocpp_billing.steve.wire import LARGEST_REGISTER_WH

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from ocpp_billing.steve.wire import MeterValue

EvidenceSource = Literal["meter_value", "next_start"]

ENERGY_REGISTER: Final = "Energy.Active.Import.Register"
WH_PER_UNIT: Final = {"Wh": 1, "kWh": 1000}
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the register showed when a session ended, according to something other than its stop.

    Attributes:
        source: ``meter_value``: the last total energy register; ``next_start``: the register at which the
            next session on the connector began.
        stop_wh: the register, rounded down to a whole Wh.
        at: when it showed that, by the charger's clock; None where that is not known.
    """

    source: EvidenceSource
    stop_wh: int
    at: datetime | None


@dataclass(frozen=True, slots=True)
class ManualStop:
    """The stop that StEvE writes when an operator closes a session.

    Attributes:
        stop_wh: its register.
        stopped_at: its time, which lies in the past, however far.
        source: what StEvE takes it from; ``none``: the session's own start, so no energy and no duration.
    """

    stop_wh: int
    stopped_at: datetime
    source: Literal["meter_value", "next_start", "none"]


@dataclass(frozen=True, slots=True)
class NextStart:
    """The start of the next session on the same connector."""

    started_at: datetime
    start_wh: int


# -- our own reading -----------------------------------------------------------------------------------


def last_register(
    values: Iterable[MeterValue], start_wh: int, started_at: datetime | None, before: datetime | None
) -> Evidence | None:
    """The last total energy register of a session.

    Values in other units, of other measurands, of single phases, signed or measured elsewhere than at the
    outlet do not count, nor do those below the start register, before the start, or after ``before``.
    Neighbours' values may stand among ours (details of StEvE <= 3.12 show them) and registers may fall
    (a charger that was reset says 0), so the end of the longest run of readings that never falls is
    taken: a stray reading is outvoted. Where two such runs end differently nobody can say, and there is
    no evidence.

    Args:
        values: in any order; those without a time do not count.
        start_wh: register at the start.
        started_at: time of the start; None where StEvE lost it.
        before: when the next session on the connector began; None where there is none.
    """
    readings = sorted(
        (value.measured_at, register_wh)
        for value in values
        if value.measured_at is not None
        and (started_at is None or value.measured_at >= started_at)
        and (before is None or value.measured_at <= before)
        and (register_wh := _total_register_wh(value)) is not None
        and start_wh <= register_wh <= LARGEST_REGISTER_WH
    )
    end = _end_of_longest_run([register_wh for _, register_wh in readings])
    if end is None:
        return None
    at, register_wh = readings[end]
    return Evidence("meter_value", int(register_wh.to_integral_value(ROUND_FLOOR)), at)


def last_heard_at(values: Iterable[MeterValue]) -> datetime | None:
    """When the charger measured anything for the last time; None when it never did."""
    return max((value.measured_at for value in values if value.measured_at is not None), default=None)


def _total_register_wh(value: MeterValue) -> Decimal | None:
    """The value in Wh, exactly, if it is the total energy register at the outlet; None otherwise.

    What a charger does not send has OCPP's default, and StEvE shows it as null or as an empty text.
    """
    if value.phase or (value.location or "Outlet") != "Outlet" or (value.format or "Raw") != "Raw":
        return None
    return _energy_wh(value)


def _energy_wh(value: MeterValue) -> Decimal | None:
    """The value in Wh if it is a reading of the energy register, whatever phase or place it belongs to."""
    text = (value.value or "").strip()
    factor = WH_PER_UNIT.get(value.unit or "Wh")
    if factor is None or (value.measurand or ENERGY_REGISTER) != ENERGY_REGISTER:
        return None
    return Decimal(text) * factor if _NUMBER.fullmatch(text) else None


def _end_of_longest_run(readings: Sequence[Decimal]) -> int | None:
    """Index of the reading at which the longest run of readings that never falls ends.

    Readings may be left out of a run. None when there are none, or when the longest runs end differently.
    """
    lowest_ends: list[Decimal] = []
    lengths: list[int] = []
    for reading in readings:
        length = bisect_right(lowest_ends, reading)
        lowest_ends[length : length + 1] = [reading]
        lengths.append(length)
    ends = [index for index, length in enumerate(lengths) if length == len(lowest_ends) - 1]
    return ends[-1] if len({readings[index] for index in ends}) == 1 else None


# -- what StEvE would do -------------------------------------------------------------------------------


def predict_manual_stop(
    values: Sequence[MeterValue],
    *,
    start_wh: int,
    started_at: datetime,
    next_start: NextStart | None,
    skips_falls: bool,
) -> ManualStop:
    """What StEvE >= 3.12 writes when this session is closed by ``PATCH /transactions/{id}/stop``.

    The last energy value and its time; without one the next start on the connector by the chargers'
    clocks, and its register if that is higher than ours; without that our own start (recorded
    on 3.14.1). StEvE does not tell phases from totals here.

    Args:
        values: as StEvE shows them, in the order of their times.
        start_wh: register at the start.
        started_at: time of the start.
        next_start: the first later start on the connector, whatever its clock is worth.
        skips_falls: 3.14 and newer leave out values below the start or below their predecessor; 3.12 and
            3.13 take the latest of all.
    """
    energy = [value for value in values if value.measured_at is not None and _counts_for_steve(value)]
    last = _last_that_rises(energy, start_wh) if skips_falls else max(energy, key=_time_of, default=None)
    if last is not None:
        return ManualStop(math.ceil(_as_steve_computes(last)), _time_of(last), "meter_value")
    if next_start is not None:
        return ManualStop(max(start_wh, next_start.start_wh), next_start.started_at, "next_start")
    return ManualStop(start_wh, started_at, "none")


def _counts_for_steve(value: MeterValue) -> bool:
    return value.format != "SignedData" and _energy_wh(value) is not None


def _last_that_rises(values: Iterable[MeterValue], start_wh: int) -> MeterValue | None:
    """The last value that is neither below the start nor below its predecessor."""
    last: MeterValue | None = None
    previous_wh = -math.inf
    for value in values:
        wh = _as_steve_computes(value)
        if wh >= max(start_wh, previous_wh):
            last = value
        previous_wh = wh
    return last


def _as_steve_computes(value: MeterValue) -> float:
    """In Wh, by StEvE's own floating-point arithmetic: 16.1 kWh become 16,101 Wh when rounded up.

    Nothing is ever billed by this number; it only foretells what StEvE is going to write.
    """
    return float(value.value or "") * WH_PER_UNIT[value.unit or "Wh"]


def _time_of(value: MeterValue) -> datetime:
    assert value.measured_at is not None  # noqa: S101 - values without a time were left out
    return value.measured_at
