"""``ocpp-billing reconcile``: do StEvE, the ledger and Lago say the same?"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from ocpp_billing import clock
from ocpp_billing.commands.ground import (
    DONE,
    FAILED,
    Commands,
    Progress,
    UsageError,
    add_range,
    ledger,
    out,
    out_json,
    range_of,
)

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

    from ocpp_billing.config import Config

DEFAULT_DAYS = 31
# So many of the last sessions are asked for, to find out what this StEvE does.
TRIED = 5


def add_commands(commands: Commands) -> None:
    """Add ``reconcile``."""
    added = commands.add(
        "reconcile",
        reconcile,
        "compare StEvE, the ledger and Lago, per subscription",
        f"Without a range: the last {DEFAULT_DAYS} days. Changes nothing anywhere. Exit code 0 when all "
        "three agree, else 1.",
    )
    add_range(added, "sessions that stopped, and usage events dated, {}")
    added.add_argument("--json", action="store_true", help="print it as JSON")


def reconcile(config: Config, args: argparse.Namespace) -> int:
    """Compare all three, and name what differs."""
    from ocpp_billing.sync.clients import open_clients

    from_, to = _window(config, args)
    with open_clients(config) as (steve, lago), ledger(config):
        from ocpp_billing.charging.known import KnownSessions
        from ocpp_billing.reconcile.compare import reconcile as compare
        from ocpp_billing.report import format_reconciliation
        from ocpp_billing.steve.capabilities import from_settings, probe

        capabilities = from_settings(config)
        if capabilities is None:
            latest = KnownSessions(config.steve_source).latest_ids(TRIED)
            capabilities = probe(steve, latest[0] if latest else None)
            # One whose start cannot be read, or that is gone, may leave something unknown: others tell.
            for known in latest[1:]:
                capabilities = capabilities if capabilities.complete else probe(steve, known)
        code = config.lago_metric_code
        found = compare(config.steve_source, steve, capabilities, lago, code, from_, to, Progress())
        if args.json:
            out_json(found.to_json())
        else:
            begin, end = (f"{at.astimezone(config.timezone):%Y-%m-%d %H:%M}" for at in (from_, to))
            out(f"{begin} to {end} ({config.sync_timezone})")
            out(format_reconciliation(found))
    return DONE if found.agrees else FAILED


def _window(config: Config, args: argparse.Namespace) -> tuple[datetime, datetime]:
    """The window that is asked for; without an end until now, without a beginning so many days."""
    from_, to = range_of(args, config)
    to = to or clock.now()
    from_ = from_ or to - timedelta(days=DEFAULT_DAYS)
    if from_ >= to:
        raise UsageError("--from is not over yet.")
    return from_, to
