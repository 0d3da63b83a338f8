"""The geometry of what is drawn on the server as SVG. Pure: integers in, lengths as text out.

Lengths are text because templates must write them as they are, in every language: no ``3,5%``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

# Below this a part of the whole cannot be seen (per myriad: hundredths of a percent).
_LEAST_SHARE = 60
_WHOLE = 10_000


def _percent(per_myriad: int) -> str:
    return f"{per_myriad // 100}.{per_myriad % 100:02d}%"


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of the stacked bar: where it begins and how wide it is, as percentages."""

    state: str
    energy_wh: int
    x: str
    width: str


def stack(energies_wh: Mapping[str, int]) -> list[Segment]:
    """Share one bar among the states with energy, in their order.

    Every state with energy can be seen, however little it has; the others give it their room. The
    widths add up to the whole bar exactly.
    """
    present = {state: energy_wh for state, energy_wh in energies_wh.items() if energy_wh > 0}
    total = sum(present.values())
    if not total:
        return []
    shares = {state: max(_LEAST_SHARE, energy * _WHOLE // total) for state, energy in present.items()}
    largest = max(shares, key=lambda state: present[state])
    shares[largest] += _WHOLE - sum(shares.values())
    segments, at = [], 0
    for state, share in shares.items():
        segments.append(Segment(state, present[state], _percent(at), _percent(share)))
        at += share
    return segments


@dataclass(frozen=True, slots=True)
class Block:
    """One state's part of a day's column: top and height in pixels."""

    state: str
    y: str
    height: str


@dataclass(frozen=True, slots=True)
class Column:
    """One day: its place as percentages, its blocks from bottom to top, its figures for the words."""

    day: date
    x: str
    width: str
    blocks: list[Block]
    energies_wh: Mapping[str, int]
    total_wh: int


@dataclass(frozen=True, slots=True)
class DayChart:
    """Columns over a scale of ``top_wh``, drawn ``height_px`` high."""

    columns: list[Column]
    top_wh: int
    height_px: int
    states: list[str]

    @property
    def total_wh(self) -> int:
        """All days together."""
        return sum(column.total_wh for column in self.columns)

    @property
    def half_wh(self) -> int:
        """The middle of the scale."""
        return self.top_wh // 2

    @property
    def middle(self) -> Column:
        """The column in the middle."""
        return self.columns[len(self.columns) // 2]

    @property
    def rows(self) -> list[tuple[date, list[int]]]:
        """The figures as a table, newest day first, days without energy left out: (day, Wh per state)."""
        return [
            (column.day, [column.energies_wh.get(state, 0) for state in self.states])
            for column in reversed(self.columns)
            if column.energies_wh
        ]


def round_up(energy_wh: int) -> int:
    """The end of a readable scale: the next 1, 2 or 5 times a power of ten, at least 1 kWh."""
    step = 1000
    while True:
        for factor in (1, 2, 5):
            if factor * step >= energy_wh:
                return factor * step
        step *= 10


def day_chart(
    days: Sequence[date], energies_wh: Mapping[date, Mapping[str, int]], states: Sequence[str], height_px: int
) -> DayChart:
    """Stack each day's energy by state, the first of ``states`` at the bottom.

    Corrections can make a day's part negative; it is left out of the drawing and kept in the figures.
    """
    top_wh = round_up(
        max((sum(max(0, part) for part in parts.values()) for parts in energies_wh.values()), default=0)
    )
    slot = _WHOLE // max(1, len(days))
    columns = []
    for number, day in enumerate(days):
        parts = energies_wh.get(day, {})
        blocks, bottom = [], height_px
        for state in states:
            if parts.get(state, 0) > 0:
                height = max(1, parts[state] * height_px // top_wh)
                bottom -= height
                blocks.append(Block(state, str(bottom), str(height)))
        ordered = {state: parts[state] for state in states if parts.get(state)}
        place = _percent(number * slot + slot // 8), _percent(slot - slot // 4)
        columns.append(Column(day, *place, blocks, ordered, sum(parts.values())))
    present = [state for state in states if any(column.energies_wh.get(state) for column in columns)]
    return DayChart(columns, top_wh, height_px, present)
