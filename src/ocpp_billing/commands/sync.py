"""``ocpp-billing sync``: one synchronization, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing.commands.ground import (
    DONE,
    FAILED,
    LEFT,
    Commands,
    Progress,
    actor,
    ledger,
    out,
    out_json,
)

if TYPE_CHECKING:
    import argparse

    from ocpp_billing.config import Config

EXIT_CODES = {"completed": DONE, "partial": LEFT, "failed": FAILED, "interrupted": FAILED}


def add_commands(commands: Commands) -> None:
    """Add ``sync``."""
    added = commands.add(
        "sync",
        sync,
        "synchronize once, in the foreground",
        "Exit code 0 completed, 1 failed, 3 partial. Beside a running worker it triggers that and follows.",
    )
    added.add_argument("--json", action="store_true", help="print the summary as JSON")


def sync(config: Config, args: argparse.Namespace) -> int:
    """Synchronize once, in the foreground."""
    from ocpp_billing.sync.clients import open_clients

    with open_clients(config):
        pass  # what is missing or cannot be right is said before a database is touched
    with ledger(config):
        return synchronize_and_report(config, as_json=args.json)


def synchronize_and_report(config: Config, *, as_json: bool) -> int:
    """Synchronize, print the summary, and return the exit code."""
    from ocpp_billing.report import format_run, run_to_json
    from ocpp_billing.sync.foreground import synchronize_once

    run = synchronize_once(config, by=actor(), on_progress=Progress())
    if as_json:
        out_json(run_to_json(run))
    else:
        out(format_run(run))
    return EXIT_CODES[run.status]
