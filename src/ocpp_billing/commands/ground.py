"""What the commands of ``ocpp-billing`` stand on: exit codes, both output streams, the ledger, questions.

Answers go to standard output, everything else (progress, logs, errors) to standard error.
"""

from __future__ import annotations

import argparse
import getpass
import io
import json
import os
import re
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ocpp_billing.config import Config, is_text, parse_instant
from ocpp_billing.embedded.database import database, set_up_schema
from ocpp_billing.log import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

DONE, FAILED, USAGE, LEFT, INTERRUPTED = 0, 1, 2, 3, 130
# What takes longer than this says how it gets on.
QUIET_FOR_S = 2.0


class CommandError(Exception):
    """A command cannot be carried out; the sentence says why and what to do."""


class UsageError(CommandError):
    """An argument or a setting of this command is missing, malformed, or does not go with another."""


# -- the streams ---------------------------------------------------------------------------------------


def prepare_streams() -> None:
    """Make standard input, output and error fit to use, however closed and in whatever encoding they came.

    One that is closed leads nowhere, before a connection gets its number and everything that is said. A
    character that the encoding does not have is written as an escape.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - for good
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def answering() -> Iterator[None]:
    """While something is written to standard output.

    Raises:
        CommandError: when it cannot be, such as to a file on a full disk.
        BrokenPipeError: whoever read has seen enough.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"The answer cannot be written: {error.strerror}.") from error


def out(text: str) -> None:
    """Write an answer."""
    with answering():
        sys.stdout.write(printable(text) + "\n")


def note(text: str) -> None:
    """Write something beside the answer; what nobody can be told holds nothing up."""
    with suppress(OSError):
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()


def out_json(value: Any) -> None:
    """Write an answer as JSON; what the encoding may not have, as JSON's own escapes."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    out(json.dumps(value, ensure_ascii=not utf8))


def refuse_what_is_no_text(args: argparse.Namespace) -> None:
    """Arguments that are not in the encoding of the terminal; names of files may be of any bytes.

    Raises:
        UsageError: when there is one.
    """
    if not all(is_text(value) for name, value in vars(args).items() if name != "file" and type(value) is str):
        raise UsageError(f"An argument is no text in {sys.getfilesystemencoding()}: type it anew.")


# -- the ledger ----------------------------------------------------------------------------------------


@contextmanager
def ledger(config: Config) -> Iterator[None]:
    """A database with the right schema, and Django set up on it."""
    with database(config, note) as server:
        set_up_django()
        set_up_schema(embedded=server is not None, notice=note)
        yield


def set_up_django() -> None:
    """Make models usable. The settings are read here, so the environment must be complete by now."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ocpp_billing.settings")
    django.setup()


def actor() -> str:
    """Who acts by the command line, for the audit."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that has a number only
        name = f"user id {os.getuid()}"
    return f"command line ({name})"


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
    try:
        return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:  # Ctrl-D
        note("")
        return False


def instant_of(option: str, value: str, config: Config) -> datetime:
    """The instant that an option names, in the organisation's time zone.

    Raises:
        UsageError: with what it should look like.
    """
    try:
        return parse_instant(value, config.timezone)
    except ValueError as error:
        raise UsageError(f"{option} is {value!r}, but must be {error}.") from None


def range_of(args: argparse.Namespace, config: Config) -> tuple[datetime | None, datetime | None]:
    """The instants of the options that :func:`add_range` adds; None for one that is not given.

    Raises:
        UsageError: when one is no date, or they name no time.
    """
    from_, to = (
        None if value is None else instant_of(option, value, config)
        for option, value in (("--from", args.from_), ("--to", args.to))
    )
    if from_ is not None and to is not None and from_ >= to:
        raise UsageError("--to must be after --from.")
    return from_, to


# -- the parser ----------------------------------------------------------------------------------------


class Commands:
    """The commands of a parser, to which each module adds its own."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        self,
        name: str,
        function: Callable[[Config, argparse.Namespace], int] | None,
        help_text: str,
        more: str = "",
        *,
        service: bool = False,
    ) -> argparse.ArgumentParser:
        """Add one command.

        Args:
            name: as it is typed.
            function: carries it out; returns the exit code. None where only commands below it do anything.
            help_text: what it does, for the overview.
            more: what else there is to know, in its own help.
            service: it serves until it is stopped, so that its log is what it says.
        """
        added = self._parsers.add_parser(name, help=help_text, description=f"{help_text}. {more}".strip())
        added.set_defaults(function=function, service=service)
        return added


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """What reads an argument that is a whole number in a range, both ends included."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,19}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return read


port_number = whole_number(1, 65_535)
# 0 = any that is free
port_or_any = whole_number(0, 65_535)
# As wide as the ledger's column for it.
transaction_id = whole_number(0, 2**63 - 1)


def add_range(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add ``--from`` and ``--to``; ``help_text`` has a place for "at or after" and "before"."""
    for option, side in (("from", "at or after"), ("to", "before")):
        parser.add_argument(
            f"--{option}",
            dest="from_" if option == "from" else "to",
            metavar="DATE",
            help=help_text.format(side) + " this date (00:00 in SYNC_TIMEZONE) or date-time",
        )
