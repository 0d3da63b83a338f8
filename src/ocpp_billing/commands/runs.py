"""``ocpp-billing runs``: what synchronizations did, without the portal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocpp_billing.commands.ground import (
    DONE,
    CommandError,
    Commands,
    ledger,
    out,
    out_json,
    whole_number,
)

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

    from ocpp_billing.config import Config
    from ocpp_billing.sync.models import SyncRun

SHOWN = 20
MOST_SHOWN = 10_000
LARGEST_ID = 2**63 - 1


def add_commands(commands: Commands) -> None:
    """Add ``runs``."""
    added = commands.add(
        "runs",
        runs,
        "list the latest synchronizations, or what one of them did and said",
        "The newest first.",
    )
    added.add_argument(
        "run", nargs="?", type=whole_number(1, LARGEST_ID), metavar="RUN", help="number of one run"
    )
    added.add_argument("--all", action="store_true", help="with the short runs between two full ones")
    added.add_argument("--errors", action="store_true", help="only those that failed or left something")
    added.add_argument(
        "--limit",
        type=whole_number(1, MOST_SHOWN),
        default=SHOWN,
        metavar="N",
        help="so many of them; %(default)s by default",
    )
    added.add_argument("--json", action="store_true", help="print it as JSON")


def runs(config: Config, args: argparse.Namespace) -> int:
    """List the latest runs, or show one."""
    with ledger(config):
        if args.run is not None:
            return _one(config, args)
        chosen = _chosen(config, args)
        if args.json:
            out_json([_to_json(run) for run in chosen])
            return DONE
        for run in chosen:
            out(_line(config, run))
        if not chosen:
            out("There is no such run. Synchronize with: ocpp-billing sync")
    return DONE


def _chosen(config: Config, args: argparse.Namespace) -> list[SyncRun]:
    from ocpp_billing.sync.models import LANES, RunStatus, SyncRun

    chosen = SyncRun.objects.filter(source_id=config.steve_source).order_by("-id")
    if args.errors:
        chosen = chosen.filter(status__in=[RunStatus.FAILED, RunStatus.PARTIAL, RunStatus.INTERRUPTED])
    elif not args.all:
        chosen = chosen.exclude(trigger__in=LANES)
    return list(chosen[: args.limit])


def _one(config: Config, args: argparse.Namespace) -> int:
    """One run: what it did, and its log."""
    from ocpp_billing.sync.models import SyncRun

    run = SyncRun.objects.filter(source_id=config.steve_source, pk=args.run).first()
    if run is None:
        raise CommandError(
            f"There is no run {args.run}: it may be too old to be kept. See: ocpp-billing runs"
        )
    if args.json:
        steps = [
            {
                "name": step.name,
                "started_at": _iso(step.started_at),
                "ended_at": _iso(step.ended_at),
                "counts": step.counts,
                "error": step.error,
            }
            for step in run.steps.all()
        ]
        said = [
            {"at": _iso(line.at), "level": line.level, "action": line.action, "message": line.message}
            for line in run.log.all()
        ]
        out_json(_to_json(run) | {"steps": steps, "log": said})
        return DONE
    out(_line(config, run))
    for line in run.log.all():
        level = "" if line.level == "info" else f"{line.level}: "
        out(f"{_said(line.at, config)}  {level}{line.message}")
    return DONE


def _line(config: Config, run: SyncRun) -> str:
    """A run in a line, and a line for each error."""
    from ocpp_billing.portal.run_words import describe

    words = describe(run)
    did = f": {words.did}" if words.did else ""
    by = f", {words.by}" if words.by else ""
    at = _said(run.started_at or run.requested_at, config)
    first = f"{at}  run {run.pk} {run.status} ({words.trigger}{by}){did}"
    return "\n".join([first, *(f"    {error}" for error in words.errors)])


def _to_json(run: SyncRun) -> dict[str, Any]:
    from ocpp_billing.report import run_to_json

    return run_to_json(run) | {
        "requested_by": run.requested_by,
        "requested_at": _iso(run.requested_at),
        "started_at": _iso(run.started_at),
        "ended_at": _iso(run.ended_at),
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _said(at: datetime, config: Config) -> str:
    return f"{at.astimezone(config.timezone):%Y-%m-%d %H:%M:%S}"
