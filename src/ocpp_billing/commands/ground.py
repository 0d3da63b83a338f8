"""What the commands of ``ocpp-billing`` stand on: exit codes, both output streams, the ledger, questions.

Answers go to standard output, everything else (progress, logs, errors) to standard error.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ocpp_billing.config import Config, parse_instant
from ocpp_billing.embedded.database import database, set_up_schema
from ocpp_billing.log import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from datetime import datetime

DONE, FAILED, USAGE, LEFT = 0, 1, 2, 3
# What takes longer than this says how it gets on.
QUIET_FOR_S = 2.0


class CommandError(Exception):
    """A command cannot be carried out; the sentence says why and what to do."""


def out(text: str) -> None:
    """Write an answer."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Write something beside the answer."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def out_json(value: Any) -> None:
    """Write an answer as JSON."""
    out(json.dumps(value, ensure_ascii=False))


# -- the ledger ----------------------------------------------------------------------------------------


@contextmanager
def ledger(config: Config) -> Iterator[None]:
    """A database with the right schema, and Django set up on it."""
    with database(config, note) as server:
        set_up_django()
        set_up_schema(embedded=server is not None)
        yield


def set_up_django() -> None:
    """Make models usable. The settings are read here, so the environment must be complete by now."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ocpp_billing.settings")
    django.setup()


def actor() -> str:
    """Who acts by the command line, for the audit."""
    return f"command line ({getpass.getuser()})"


# -- talking with a person -----------------------------------------------------------------------------


class Progress:
    """Sentences of a long command: on a terminal at once, else only when it takes long."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Say how it gets on."""
        if sys.stderr.isatty() or time.monotonic() - self._began > QUIET_FOR_S:
            note(text)


def confirmed(question: str) -> bool:
    """Ask before something is changed.

    Raises:
        CommandError: when there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise CommandError("There is no terminal to ask on: repeat with --yes.")
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


def instant_of(option: str, value: str | None, config: Config) -> datetime | None:
    """The instant that an option names, in the organisation's time zone.

    Raises:
        CommandError: with what it should look like.
    """
    try:
        return None if value is None else parse_instant(value, config.timezone)
    except ValueError as error:
        raise CommandError(f"{option} is {value!r}, but must be {error}.") from None


# -- the parser ----------------------------------------------------------------------------------------


class Commands:
    """The commands of a parser, to which each module adds its own."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        self,
        name: str,
        function: Callable[[Config, argparse.Namespace], int],
        help_text: str,
        more: str = "",
        *,
        service: bool = False,
    ) -> argparse.ArgumentParser:
        """Add one command.

        Args:
            name: as it is typed.
            function: carries it out; returns the exit code.
            help_text: what it does, for the overview.
            more: what else there is to know, in its own help.
            service: it serves until it is stopped, so that its log is what it says.
        """
        added = self._parsers.add_parser(name, help=help_text, description=f"{help_text}. {more}".strip())
        added.set_defaults(function=function, service=service)
        return added


def add_range(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add ``--from`` and ``--to``; ``help_text`` has a place for "at or after" and "before"."""
    for option, side in (("from", "at or after"), ("to", "before")):
        parser.add_argument(
            f"--{option}",
            dest="from_" if option == "from" else "to",
            metavar="DATE",
            help=help_text.format(side) + " this date (00:00 in SYNC_TIMEZONE) or date-time",
        )
