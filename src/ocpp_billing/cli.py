"""The command line: ``ocpp-billing``. Each command is in a module of :mod:`ocpp_billing.commands`.

Exit codes: 0 done, 1 failed or refused, 2 wrong usage or settings, 3 a synchronization or an import that left
something, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from ocpp_billing import __version__
from ocpp_billing.commands.ground import (
    FAILED,
    INTERRUPTED,
    USAGE,
    CommandError,
    Commands,
    UsageError,
    note,
    prepare_streams,
    refuse_what_is_no_text,
)
from ocpp_billing.config import Config, ConfigError, load_config
from ocpp_billing.embedded.postgres import EmbeddedPostgresError
from ocpp_billing.log import configure_logging
from ocpp_billing.schema import SchemaError

if TYPE_CHECKING:
    from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    from ocpp_billing.commands import (
        admin,
        balance,
        delivery,
        doctor,
        held,
        mappings,
        pseudonymise,
        reconcile,
        retry,
        runs,
        services,
        setup_lago,
        simulate,
        stuck,
        sync,
    )

    parser = argparse.ArgumentParser(
        prog="ocpp-billing",
        description="Every finished charging session of StEvE becomes exactly one usage event in Lago, "
        "or is visibly held. Settings come from the environment and from .env; see .env.example.",
    )
    parser.add_argument("--version", action="version", version=f"ocpp-billing {__version__}")
    commands = Commands(parser)
    for module in (
        services,
        sync,
        runs,
        balance,
        reconcile,
        doctor,
        delivery,
        held,
        retry,
        stuck,
        mappings,
        pseudonymise,
        setup_lago,
        admin,
        simulate,
    ):
        module.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command; every error that an operator can mend is one sentence, not a traceback."""
    prepare_streams()
    args = _parsed(arguments)
    try:
        refuse_what_is_no_text(args)
        config = load_config()
        configure_logging(level=_log_level(config, args), json_lines=config.log_format == "json")
        code: int = args.function(config, args)
    except BrokenPipeError:
        _answer_no_more()  # whoever read has seen enough (``... | head``)
        return FAILED
    except ConfigError as error:
        if hasattr(args, "misconfigured"):
            return int(args.misconfigured(error, args))
        for problem in error.problems:
            note(problem)
        return USAGE
    except (CommandError, EmbeddedPostgresError, SchemaError) as error:
        note(str(error))
        return USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        sentence = _understood(error)
        if sentence is None:
            raise
        note(sentence)
        return FAILED
    return code


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What is to be done; ``--help`` and the like are answered and end here."""
    try:
        return build_parser().parse_args(arguments)
    except SystemExit:
        try:
            sys.stdout.flush()
        except OSError:
            _answer_no_more()
        raise


def _answer_no_more() -> None:
    """What is left to be written must not be tried again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _log_level(config: Config, args: argparse.Namespace) -> str:
    """Services log what they do; a command that a person waits for says it itself, and logs warnings."""
    if args.service or config.log_level != "info":
        return config.log_level
    return "error"


def _understood(error: Exception) -> str | None:
    """The sentence for errors that an operator can mend; most of their classes need Django to be set up."""
    from django.apps import apps

    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename else None
    if not apps.models_ready:
        return None

    from ocpp_billing.billing.closing import ClosingError
    from ocpp_billing.billing.control import ControlError
    from ocpp_billing.billing.move import MoveError
    from ocpp_billing.charging.pseudonyms import PseudonymError
    from ocpp_billing.database import FenceError, first_line, is_disk_full, why_away
    from ocpp_billing.lago.errors import LagoError
    from ocpp_billing.mappings.store import MappingError
    from ocpp_billing.steve.errors import SteveError
    from ocpp_billing.sync.heartbeat import DATABASE_GONE

    known = (ClosingError, ControlError, LagoError, MappingError, MoveError, PseudonymError, SteveError)
    if isinstance(error, known):
        return str(error)
    if isinstance(error, FenceError):
        return f"{error}. The other worker goes on with the work."
    if is_disk_full(error):
        return why_away(error)
    if isinstance(error, DATABASE_GONE):
        return (
            f"The database cannot be used: {first_line(error)}. Check DATABASE_URL, and that PostgreSQL runs:"
            " why the embedded one does not is in the log of ocpp-billing up."
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
