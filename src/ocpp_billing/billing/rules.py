"""Whether a stopped session is sane: pure, first match wins, over plain records.

What the mapping, Lago and go-live say comes after; see :mod:`ocpp_billing.billing.decide`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from ocpp_billing.charging.clocks import CLOCK_LAG, CLOCK_TOLERANCE
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.energy import say_kwh

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime
    from decimal import Decimal

# StEvE rounds the meter value of a manual stop up to a whole Wh.
EVIDENCE_TOLERANCE_WH = 1


class Rule(StrEnum):
    """What a session is judged by, in the order in which it counts; several may share a reason."""

    IDENTITY = "identity"
    START_KNOWN = "start_known"
    STOP_AFTER_START = "stop_after_start"
    START_NOT_AHEAD = "start_not_ahead"
    STOP_NOT_AHEAD = "stop_not_ahead"
    CLOCK_NOT_RESET = "clock_not_reset"
    REGISTERS_RISE = "registers_rise"
    ENERGY = "energy"
    DURATION = "duration"
    POWER = "power"
    OVERLAP = "overlap"
    MANUAL_STOP = "manual_stop"
    SOME_ENERGY = "some_energy"
    MINIMUM = "minimum"
    GO_LIVE = "go_live"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds from the settings."""

    max_session_kwh: Decimal
    max_power_kw: Decimal
    max_session_hours: Decimal
    min_session_kwh: Decimal


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """A stopped session as StEvE tells it, and what the ledger knows around it.

    Attributes:
        first_seen_at: when the transaction was first read by us.
        stop_seen_at: when it was first read as stopped.
        latest_lower_start_at: latest credible start among lower ids.
        overlaps: StEvE id of another stopped, sane session on the connector whose time and register
            range both intersect this one's by more than zero.
        identity_conflict: what is wrong with the identity of the tag or the transaction, in words.
        evidence_stop_wh: the register at the stop according to meter values or the next start.
        known_elsewhere: that another source knows the very same session, and what happened to it there, in
            words; None where that is no reason against billing it.
        was_sent_elsewhere: that source has sent it to Lago.
    """

    started_at: datetime | None
    start_wh: int
    stopped_at: datetime
    stop_wh: int
    manual_stop: bool
    first_seen_at: datetime
    stop_seen_at: datetime
    latest_lower_start_at: datetime | None = None
    overlaps: int | None = None
    identity_conflict: str | None = None
    evidence_stop_wh: int | None = None
    known_elsewhere: str | None = None
    was_sent_elsewhere: bool = False

    @property
    def energy_wh(self) -> int:
        """Stop register minus start register; negative when the charger says so."""
        return self.stop_wh - self.start_wh


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule that matched: ``hold`` or ``exclude`` with its reason and the numbers in words."""

    outcome: str
    reason: Reason
    says: str
    rule: Rule


def judge_session(
    facts: SessionFacts,
    limits: Limits,
    go_live_at: datetime | None,
    accepted: Collection[Reason] = (),
) -> Verdict | None:
    """Judge one stopped session; None = nothing speaks against billing it.

    Args:
        facts: the session.
        limits: thresholds.
        go_live_at: sessions that stopped before are excluded; None = shadow mode, nothing is.
        accepted: reasons that a person has overridden for this session; the later rules still count.
    """
    return next(
        (verdict for verdict in find_verdicts(facts, limits, go_live_at) if verdict.reason not in accepted),
        None,
    )


def find_verdicts(facts: SessionFacts, limits: Limits, go_live_at: datetime | None) -> Iterator[Verdict]:
    """Every rule that matches, in the order in which they count."""
    yield from _judge_identity(facts)
    yield from _judge_clock(facts)
    yield from _judge_energy(facts, limits)
    yield from _judge_surroundings(facts)
    yield from _judge_amount(facts, limits, go_live_at)
    yield from _judge_elsewhere(facts)


def _hold(rule: Rule, reason: Reason, says: str) -> Verdict:
    return Verdict("hold", reason, says, rule)


def _utc(at: datetime) -> str:
    return f"{at:%F %T} UTC"


def _judge_identity(facts: SessionFacts) -> Iterator[Verdict]:
    if facts.identity_conflict:
        yield _hold(Rule.IDENTITY, Reason.IDENTITY_CONFLICT, facts.identity_conflict)


def _judge_clock(facts: SessionFacts) -> Iterator[Verdict]:
    started_at, stopped_at = facts.started_at, facts.stopped_at
    if started_at is None:
        yield _hold(Rule.START_KNOWN, Reason.CLOCK_SKEW, "the start time is missing")
        return
    if stopped_at < started_at:
        yield _hold(
            Rule.STOP_AFTER_START,
            Reason.CLOCK_SKEW,
            f"stopped {_utc(stopped_at)}, before it started {_utc(started_at)}",
        )
    if started_at - facts.first_seen_at > CLOCK_TOLERANCE:
        yield _hold(
            Rule.START_NOT_AHEAD,
            Reason.CLOCK_SKEW,
            f"started {_utc(started_at)}, after it was first seen {_utc(facts.first_seen_at)}",
        )
    if stopped_at - facts.stop_seen_at > CLOCK_TOLERANCE:
        yield _hold(
            Rule.STOP_NOT_AHEAD,
            Reason.CLOCK_SKEW,
            f"stopped {_utc(stopped_at)}, after the stop was first seen {_utc(facts.stop_seen_at)}",
        )
    lower = facts.latest_lower_start_at
    if lower is not None and lower - started_at > CLOCK_LAG:
        yield _hold(
            Rule.CLOCK_NOT_RESET,
            Reason.CLOCK_SKEW,
            f"started {_utc(started_at)}, more than {CLOCK_LAG.days} days before {_utc(lower)}, "
            "the latest start among lower ids",
        )


def _judge_energy(facts: SessionFacts, limits: Limits) -> Iterator[Verdict]:
    energy_wh = facts.energy_wh
    if energy_wh < 0:
        yield _hold(
            Rule.REGISTERS_RISE,
            Reason.NEGATIVE_ENERGY,
            f"stop register {say_kwh(facts.stop_wh)} kWh below start register {say_kwh(facts.start_wh)} kWh",
        )
    if energy_wh > limits.max_session_kwh * 1000:
        yield _hold(
            Rule.ENERGY,
            Reason.IMPLAUSIBLE,
            f"{say_kwh(energy_wh)} kWh is more than {limits.max_session_kwh} kWh",
        )
    if facts.started_at is None:  # held by its clock; accepted, it has no duration to judge
        return
    duration = facts.stopped_at - facts.started_at
    duration_us = duration // timedelta(microseconds=1)
    if duration_us > limits.max_session_hours * 3_600_000_000:
        yield _hold(
            Rule.DURATION,
            Reason.IMPLAUSIBLE,
            f"lasted {duration}, more than {limits.max_session_hours} hours",
        )
    # kW on average = Wh / 1000 / (s / 3600); compared without a division, so that 0 s is covered, too.
    if energy_wh * 3_600_000 > limits.max_power_kw * max(duration_us, 0):
        yield _hold(
            Rule.POWER,
            Reason.IMPLAUSIBLE,
            f"{say_kwh(energy_wh)} kWh in {duration} is more than {limits.max_power_kw} kW on average",
        )


def _judge_surroundings(facts: SessionFacts) -> Iterator[Verdict]:
    if facts.overlaps is not None:
        yield _hold(
            Rule.OVERLAP,
            Reason.REGISTER_OVERLAP,
            f"time and register range intersect those of transaction {facts.overlaps} on the same connector",
        )
    if facts.manual_stop:
        yield from _judge_manual_stop(facts)


def _judge_manual_stop(facts: SessionFacts) -> Iterator[Verdict]:
    """StEvE writes a zero-energy stop when it has no meter value: never believe it by itself."""
    stop, evidence = say_kwh(facts.stop_wh), facts.evidence_stop_wh
    if evidence is None:
        says = f"closed by hand at {stop} kWh, and nothing shows what was delivered"
    elif facts.energy_wh == 0:
        says = f"closed by hand with no energy; the evidence says {say_kwh(evidence)} kWh at the stop"
    elif abs(evidence - facts.stop_wh) > EVIDENCE_TOLERANCE_WH:
        says = f"closed by hand at {stop} kWh, but the evidence says {say_kwh(evidence)} kWh"
    else:
        return
    yield _hold(Rule.MANUAL_STOP, Reason.MANUAL_STOP_WITHOUT_EVIDENCE, says)


def _judge_amount(facts: SessionFacts, limits: Limits, go_live_at: datetime | None) -> Iterator[Verdict]:
    energy_wh = facts.energy_wh
    if energy_wh == 0:
        yield Verdict(
            "exclude",
            Reason.ZERO_ENERGY,
            "the registers at start and stop are the same",
            Rule.SOME_ENERGY,
        )
    elif energy_wh < limits.min_session_kwh * 1000:
        yield Verdict(
            "exclude",
            Reason.BELOW_MINIMUM,
            f"{say_kwh(energy_wh)} kWh is less than {limits.min_session_kwh} kWh",
            Rule.MINIMUM,
        )
    if go_live_at is not None and facts.stopped_at < go_live_at:
        yield Verdict(
            "exclude",
            Reason.BEFORE_GO_LIVE,
            f"stopped {_utc(facts.stopped_at)}, before billing began {_utc(go_live_at)}",
            Rule.GO_LIVE,
        )


def _judge_elsewhere(facts: SessionFacts) -> Iterator[Verdict]:
    """The last rule: what is not billed in any case, however many sources know it, needs no person."""
    if facts.known_elsewhere is not None:
        sent = facts.was_sent_elsewhere
        reason = Reason.BILLED_BY_ANOTHER_SOURCE if sent else Reason.KNOWN_BY_ANOTHER_SOURCE
        yield _hold(Rule.ELSEWHERE, reason, facts.known_elsewhere)
