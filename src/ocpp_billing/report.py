"""What a run and the balance look like on a terminal and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocpp_billing.sync.journal import COUNTS

if TYPE_CHECKING:
    from ocpp_billing.billing.balance import Balance
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
    lines += [f"{error['step']}: {error['error']}" for error in summary["errors"]]
    return "\n".join(lines)


def format_balance(balance: Balance) -> str:
    """The balance as a table of states x sessions x kWh, the reasons below their states."""
    rows = [("state", "sessions", "kWh")]
    rows += [(state, f"{a.sessions:,}", _kwh(a.energy_wh)) for state, a in balance.states.items()]
    total = ("read from StEvE", f"{balance.read.sessions:,}", _kwh(balance.read.energy_wh))
    reasons = [(f"  {reason}", f"{a.sessions:,}", _kwh(a.energy_wh)) for reason, a in balance.reasons.items()]
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
            f"{balance.negative.sessions} with negative energy ({_kwh(balance.negative.energy_wh)} kWh)"
        )
        lines += ["", f"{negative} count 0 kWh"]
    lines.append("")
    lines.append(
        f"malformed {balance.malformed}; unexplained {balance.unexplained.sessions} sessions, "
        f"{_kwh(balance.unexplained.energy_wh)} kWh"
    )
    return "\n".join(lines)


def _kwh(energy_wh: int) -> str:
    sign = "-" if energy_wh < 0 else ""
    kwh, wh = divmod(abs(energy_wh), 1000)
    return f"{sign}{kwh:,}.{wh:03d}"
