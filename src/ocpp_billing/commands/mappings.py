"""``ocpp-billing mappings``: import and export as CSV."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocpp_billing.commands.ground import DONE, LEFT, CommandError, Commands, actor, ledger, note, out

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ocpp_billing.config import Config


def add_commands(commands: Commands) -> None:
    """Add ``mappings import`` and ``mappings export``."""
    parser = commands.add("mappings", mappings_export, "import and export mappings as CSV")
    acts = parser.add_subparsers(metavar="ACT", required=True)
    added = acts.add_parser(
        "import",
        help="import mappings from a CSV file",
        description="Columns: id_tag,customer_id,subscription_id,valid_from,valid_to,active,note. "
        "The ids are Lago's external ids. A line with an error is reported and the others go on.",
    )
    added.add_argument("file", metavar="FILE.csv", help="the file; - reads standard input")
    added.add_argument("--dry-run", action="store_true", help="report only, change nothing")
    added.set_defaults(function=mappings_import)
    acts.add_parser("export", help="write all mappings as CSV").set_defaults(function=mappings_export)


def mappings_import(config: Config, args: argparse.Namespace) -> int:
    """Import mappings from a CSV file."""
    with ledger(config):
        from ocpp_billing.mappings.csv import import_mappings

        with _open_csv(args.file) as lines:
            report = import_mappings(
                lines, source=config.steve_source, zone=config.timezone, by=actor(), dry_run=args.dry_run
            )
    for line, problem in report.errors:
        note(f"line {line}: {problem}")
    did = "would be created" if args.dry_run else "created"
    wrong = len(report.errors)
    out(f"{report.created} mappings {did}, {report.unchanged} unchanged, {wrong} with errors.")
    return LEFT if report.errors else DONE


@contextmanager
def _open_csv(name: str) -> Iterator[Any]:
    if name == "-":
        yield sys.stdin
        return
    try:
        with Path(name).open(encoding="utf-8", newline="") as file:
            yield file
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CommandError(f"{name} cannot be read: {reason}.") from None


def mappings_export(config: Config, _args: argparse.Namespace) -> int:
    """Write all mappings as CSV to standard output."""
    with ledger(config):
        from ocpp_billing.mappings.csv import export_mappings

        number = export_mappings(sys.stdout, source=config.steve_source)
    note(f"{number} mappings.")
    return DONE
