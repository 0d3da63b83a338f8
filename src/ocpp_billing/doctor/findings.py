"""What the doctor finds: one finding per thing that was looked at, each with what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

Level = Literal["ok", "warning", "problem"]
Area = Literal["settings", "database", "worker", "StEvE", "Lago", "contract"]
# Clocks that differ by less than this are the same for us: answers take a moment, and Date has seconds.
CLOCKS_AGREE_S = 5.0
# From here on a start or stop counts as one from the future (rule clock_skew).
CLOCKS_TOO_FAR_S = 120.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: where it belongs.
        code: what it is, for scripts; never changes its meaning.
        level: ``ok``, ``warning`` (works, and deserves a look) or ``problem``.
        says: what was found.
        do: what to do about it; "" when nothing.
    """

    area: Area
    code: str
    level: Level
    says: str
    do: str = ""

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing doctor --json``."""
        return {
            "area": self.area,
            "code": self.code,
            "level": self.level,
            "says": self.says,
            "do": self.do,
        }


def ok(area: Area, code: str, says: str) -> Finding:
    """Something that is as it should be."""
    return Finding(area, code, "ok", says)


def warning(area: Area, code: str, says: str, do: str) -> Finding:
    """Something that works, and deserves a look."""
    return Finding(area, code, "warning", says, do)


def problem(area: Area, code: str, says: str, do: str) -> Finding:
    """Something that keeps sessions from being read or billed."""
    return Finding(area, code, "problem", says, do)


def judge_clock(area: Area, theirs: datetime | None, ours: datetime, took: timedelta) -> list[Finding]:
    """Compare a clock with ours.

    Args:
        area: whose clock.
        theirs: what it said; None = it did not, and nothing is found.
        ours: when its answer had arrived.
        took: how long the question took; so much of a difference proves nothing.
    """
    if theirs is None:
        return []
    ahead_s = (theirs - ours).total_seconds()
    proven_s = max(abs(ahead_s) - took.total_seconds() - 1, 0.0)  # Date is cut to the second
    if proven_s <= CLOCKS_AGREE_S:
        return [ok(area, "clock", "Its clock and ours agree.")]
    how = f"Its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} ours."
    do = "Let both machines, and this one, keep time by NTP."
    if proven_s >= CLOCKS_TOO_FAR_S:
        return [problem(area, "clock", how, do)]
    return [warning(area, "clock", how, do)]


def has_problem(findings: Sequence[Finding]) -> bool:
    """Whether anything keeps sessions from being read or billed."""
    return any(finding.level == "problem" for finding in findings)
