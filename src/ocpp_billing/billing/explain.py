"""Every rule about a session with the numbers in place, whether it matched or not: pure.

Which rules match is what :mod:`ocpp_billing.billing.rules` says, and the numbers beside it are the facts
and thresholds that it was given: there is no second copy of a rule that could say something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_DOWN, ROUND_UP, Decimal, localcontext
from typing import TYPE_CHECKING

from ocpp_billing.billing.rules import EVIDENCE_TOLERANCE_WH, Rule, find_verdicts
from ocpp_billing.charging.clocks import CLOCK_LAG, CLOCK_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from ocpp_billing.billing.rules import Limits, SessionFacts, Verdict
    from ocpp_billing.charging.reasons import Reason

# Hundred years: no session lasts longer, and a limit beyond it can still be shown.
_LONGEST_HOURS = Decimal(100 * 365 * 24)

# What is compared: integer Wh, kW to a tenth, a length of time, or an instant.
Quantity = int | Decimal | timedelta | None


@dataclass(frozen=True, slots=True)
class Check:
    """One rule about one session.

    Attributes:
        rule: which.
        measured: what was compared; None = the rule compares nothing, or had nothing to compare.
        limit: with what.
        verdict: what the rule says against billing; None = it has nothing against it.
        accepted: whether a person has overridden that for this session.
    """

    rule: Rule
    measured: Quantity
    limit: Quantity
    verdict: Verdict | None
    accepted: bool

    @property
    def passed(self) -> bool:
        """Whether the rule has nothing against billing."""
        return self.verdict is None

    @property
    def decides(self) -> bool:
        """Whether the rule stands against billing."""
        return self.verdict is not None and not self.accepted


def explain_session(
    facts: SessionFacts, limits: Limits, go_live_at: datetime | None, accepted: Collection[Reason] = ()
) -> list[Check]:
    """Every rule that is about the session, in the order in which they count.

    The first one that :attr:`Check.decides` is what ``judge_session`` answers for the same arguments.
    Rules that have nothing to look at (the clock of lower ids where there are none, power where the start
    is missing) are left out.
    """
    against: dict[Rule, Verdict] = {}
    for found in find_verdicts(facts, limits, go_live_at):
        against.setdefault(found.rule, found)
    checks = []
    for rule in Rule:
        verdict = against.get(rule)
        numbers = _numbers(rule, facts, limits, go_live_at, matched=verdict is not None)
        if numbers is not None:
            accepted_too = verdict is not None and verdict.reason in accepted
            checks.append(Check(rule, *numbers, verdict, accepted_too))
    return checks


def _numbers(  # noqa: C901, PLR0911, PLR0912 - a table
    rule: Rule, facts: SessionFacts, limits: Limits, go_live_at: datetime | None, *, matched: bool
) -> tuple[Quantity, Quantity] | None:
    """What a rule compares with what; None = it has nothing to look at."""
    started_at, stopped_at = facts.started_at, facts.stopped_at
    lower = facts.latest_lower_start_at
    match rule:
        case Rule.IDENTITY | Rule.START_KNOWN:
            return None, None
        case Rule.STOP_AFTER_START if started_at is not None:
            return stopped_at - started_at, timedelta()
        case Rule.START_NOT_AHEAD if started_at is not None:
            return started_at - facts.first_seen_at, CLOCK_TOLERANCE
        case Rule.STOP_NOT_AHEAD if started_at is not None:
            return stopped_at - facts.stop_seen_at, CLOCK_TOLERANCE
        case Rule.CLOCK_NOT_RESET if started_at is not None and lower is not None:
            return lower - started_at, CLOCK_LAG
        case Rule.REGISTERS_RISE:
            return facts.energy_wh, 0
        case Rule.ENERGY:
            return facts.energy_wh, _wh(limits.max_session_kwh)
        case Rule.DURATION if started_at is not None:
            return stopped_at - started_at, _hours(limits.max_session_hours)
        case Rule.POWER if started_at is not None:
            return _average_kw(facts.energy_wh, stopped_at - started_at, matched=matched), limits.max_power_kw
        case Rule.OVERLAP:
            return facts.overlaps, None
        case Rule.MANUAL_STOP:
            if not facts.manual_stop or facts.evidence_stop_wh is None:
                return None, None
            return abs(facts.evidence_stop_wh - facts.stop_wh), EVIDENCE_TOLERANCE_WH
        case Rule.SOME_ENERGY:
            return facts.energy_wh, 0
        case Rule.MINIMUM:
            return facts.energy_wh, _wh(limits.min_session_kwh)
        case Rule.GO_LIVE if go_live_at is not None:
            return stopped_at - go_live_at, timedelta()
        case Rule.ELSEWHERE if matched:
            return None, None
        case _:
            return None


def _wh(kwh: Decimal) -> Decimal:
    return kwh * 1000


def _hours(hours: Decimal) -> timedelta:
    return timedelta(microseconds=int(min(hours, _LONGEST_HOURS) * 3_600_000_000))


def _average_kw(energy_wh: int, duration: timedelta, *, matched: bool) -> Decimal | None:
    """KW on average to a tenth, rounded to the side of the limit on which it lies; None = no time passed."""
    duration_us = duration // timedelta(microseconds=1)
    if duration_us <= 0:
        return None
    with localcontext(prec=60):
        exact = Decimal(energy_wh * 3_600_000) / duration_us
        return exact.quantize(Decimal("0.1"), ROUND_UP if matched else ROUND_DOWN)
