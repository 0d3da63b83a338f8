"""``ocpp-billing mappings``: import and export as CSV."""

from __future__ import annotations

import io
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ocpp_billing.commands.ground import (
    DONE,
    LEFT,
    CommandError,
    Commands,
    actor,
    answering,
    ledger,
    note,
    out,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ocpp_billing.config import Config


def add_commands(commands: Commands) -> None:
    """Add ``mappings import`` and ``mappings export``."""
    parser = commands.add("mappings", None, "import and export mappings as CSV")
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
def _open_csv(name: str) -> Iterator[IO[str]]:
    """The lines of a file, or of standard input: UTF-8 whatever the locale, as exports are."""
    shown = "Standard input" if name == "-" else name
    try:
        with _binary(name) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as lines:
            yield lines
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CommandError(f"{shown} cannot be read: {reason}.") from None


def _binary(name: str) -> IO[bytes]:
    return sys.stdin.buffer if name == "-" else Path(name).open("rb")


def mappings_export(config: Config, _args: argparse.Namespace) -> int:
    """Write all mappings as CSV to standard output."""
    with ledger(config):
        from ocpp_billing.mappings.csv import export_mappings

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as an import expects it, whatever the locale
        with answering():
            number = export_mappings(sys.stdout, source=config.steve_source)
    note(f"{number} mappings.")
    return DONE
