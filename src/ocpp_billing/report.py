"""What a run and the balance look like on a terminal and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocpp_billing.billing.balance import Amount, name_of
from ocpp_billing.charging.models import SessionState
from ocpp_billing.energy import say_kwh
from ocpp_billing.sync.journal import COUNTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.billing.balance import Balance, BreakdownRow, Dimension, Proof
    from ocpp_billing.billing.closing import StuckSession
    from ocpp_billing.reconcile.differences import Reconciliation
    from ocpp_billing.sync.models import SyncRun


def run_to_json(run: SyncRun) -> dict[str, Any]:
    """A finished run, in the shape of ``ocpp-billing sync --json``."""
    began, ended = run.started_at or run.requested_at, run.ended_at or run.requested_at
    return {
        "run_id": run.pk,
        "status": run.status,
        "trigger": run.trigger,
        "delivery": run.delivery,
        **{name: run.counts.get(name, 0) for name in COUNTS},
        "duration_s": round((ended - began).total_seconds(), 3),
        "errors": run.errors,
    }


def format_run(run: SyncRun) -> str:
    """A finished run in a few lines."""
    summary = run_to_json(run)
    did = ", ".join(f"{summary[name]} {name}" for name in COUNTS if name not in {"steve_calls", "lago_calls"})
    lines = [
        f"Run {summary['run_id']} {summary['status']} in {summary['duration_s']:.1f} s: {did}",
        f"({summary['steve_calls']} calls to StEvE, {summary['lago_calls']} to Lago).",
    ]
    if summary["delivery"] == "shadow":
        lines.append(
            "Shadow mode: nothing is sent to Lago. Queued is what would be billed. "
            "See it and go live with: ocpp-billing go-live --from DATE"
        )
    if summary["delivery"] == "paused":
        lines.append("Delivery is paused: what is queued stays queued. Go on with: ocpp-billing resume")
    steps: dict[str, list[str]] = {}
    for error in summary["errors"]:  # one cause that stopped several steps is said once
        steps.setdefault(error["error"], []).append(error["step"])
    lines += [f"{', '.join(names)}: {sentence}" for sentence, names in steps.items()]
    return "\n".join(lines)


def format_balance(balance: Balance) -> str:
    """The balance as a table of states x sessions x kWh, the reasons below their states."""
    rows = [("state", "sessions", "kWh")]
    rows += [(state, f"{a.sessions:,}", say_kwh(a.energy_wh)) for state, a in balance.states.items()]
    total = ("read from StEvE", f"{balance.read.sessions:,}", say_kwh(balance.read.energy_wh))
    reasons = [
        (f"  {reason}", f"{a.sessions:,}", say_kwh(a.energy_wh)) for reason, a in balance.reasons.items()
    ]
    width = max(len(row[0]) for row in [*rows, total, *reasons])
    amount_width = max(len(row[2]) for row in [*rows, total, *reasons])

    def line(row: tuple[str, str, str]) -> str:
        return f"{row[0]:<{width}}  {row[1]:>9}  {row[2]:>{amount_width}}"

    ruler = "-" * len(line(total))
    lines = [line(rows[0]), ruler, *map(line, rows[1:]), ruler, line(total)]
    if reasons:
        lines += ["", "reasons", *map(line, reasons)]
    if balance.negative.sessions:
        negative = (
            f"{balance.negative.sessions} with negative energy ({say_kwh(balance.negative.energy_wh)} kWh)"
        )
        lines += ["", f"{negative} count 0 kWh"]
    lines.append("")
    lines.append(
        f"malformed {balance.malformed}; unexplained {balance.unexplained.sessions} sessions, "
        f"{say_kwh(balance.unexplained.energy_wh)} kWh"
    )
    return "\n".join(lines)


def format_proof(proof: Proof) -> str:
    """What a full recount said about the counters, in a line or a few."""
    proved_at = f"{proof.proved_at:%Y-%m-%d %H:%M:%S} UTC"
    if not proof.drift:
        return f"Proved at {proved_at}: the counters say the same as the full recount."
    lines = [f"Proved at {proved_at}: the counters differed from the full recount and were put right."]
    lines += [f"  {drift}" for drift in proof.drift]
    return "\n".join(lines)


def format_breakdown(rows: Sequence[BreakdownRow], dimension: Dimension) -> str:
    """A breakdown as a table: sessions, kWh, and the kWh of each state that occurs; sums below."""
    states = [state.value for state in SessionState if any(state.value in row.states for row in rows)]

    def cells(name: str, sessions: int, energy_wh: int, by_state: Sequence[int]) -> list[str]:
        return [name, f"{sessions:,}", say_kwh(energy_wh), *map(say_kwh, by_state)]

    nothing = Amount()
    table = [[dimension, "sessions", "kWh", *states]]
    table += [
        cells(
            name_of(row, dimension),
            row.total.sessions,
            row.total.energy_wh,
            [row.states.get(state, nothing).energy_wh for state in states],
        )
        for row in rows
    ]
    table.append(
        cells(
            "all",
            sum(row.total.sessions for row in rows),
            sum(row.total.energy_wh for row in rows),
            [sum(row.states.get(state, nothing).energy_wh for row in rows) for state in states],
        )
    )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    ruler = "-" * len(lines[0])
    return "\n".join([lines[0], ruler, *lines[1:-1], ruler, lines[-1]])


def format_stuck(sessions: Sequence[StuckSession], portal: str) -> str:
    """Stuck sessions, four lines each: which, what the evidence says, what can be done, and where.

    Args:
        sessions: the longest stuck first.
        portal: its address, where readings are entered and sessions excluded.
    """
    if not sessions:
        return "No session is stuck."
    lines: list[str] = []
    for session in sessions:
        tag = f"tag …{session.id_tag_last4}" if session.id_tag_last4 else "tag not shown"
        since = f"stuck since {session.stuck_since:%Y-%m-%d %H:%M} UTC"
        where = f"{session.charge_box_id} connector {session.connector_id}"
        payer = "mapped to nobody" if session.customer is None else f"customer {session.customer}"
        if session.mapping == "inactive":
            payer += " (mapping switched off)"
        lines.append(f"{session.steve_id}  {where}, {tag}, {payer}, {since}")
        address = f"In the portal: {portal}/sessions/{session.session_id}"
        lines += [f"    {_evidence_in_words(session)}", f"    {session.says}", f"    {address}"]
    return "\n".join(lines)


def _evidence_in_words(session: StuckSession) -> str:
    finding = session.finding
    if finding is None or finding.stop_wh is None or session.energy_wh is None:
        return "energy unknown"
    source = "last meter value" if finding.source == "meter_value" else "next start on the connector"
    return f"{say_kwh(session.energy_wh)} kWh by the {source} ({say_kwh(finding.stop_wh)} kWh)"


def format_reconciliation(found: Reconciliation) -> str:
    """Three sides of a window as a table, one line per subscription, and what differs below it."""
    table = [["subscription", "StEvE", "kWh", "ledger", "kWh", "in Lago", "kWh", "Lago counts"]]
    for line in found.lines:
        states = ", ".join(f"{amount.sessions} {state}" for state, amount in line.ledger.items())
        ledger_wh = sum(amount.energy_wh for amount in line.ledger.values())
        counts = [
            f"{period.counted_kwh} kWh{' (invoiced)' if period.invoiced else ''}"
            f"{'' if period.agrees else ' DIFFERS'}"
            f"{f', {say_kwh(period.uncounted_wh)} kWh just taken' if period.uncounted_wh else ''}"
            for period in line.periods
        ]
        table.append(
            [
                line.subscription or "(nobody)",
                f"{line.steve.sessions:,}",
                say_kwh(line.steve.energy_wh),
                states or "nothing",
                say_kwh(ledger_wh),
                f"{line.lago.sessions:,}",
                say_kwh(line.lago.energy_wh),
                ", ".join(counts),
            ]
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    left = {0, 3, 7}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    lines.append("")
    if found.agrees:
        lines.append("All three agree.")
    for difference in found.differences:
        whose = f" ({difference.subscription})" if difference.subscription else ""
        lines.append(f"{difference.between}: {difference.what}{whose}: {difference.says}")
        lines.append(f"    {difference.do}")
    return "\n".join(lines)
