"""The command line: ``ocpp-billing``.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 a synchronization that left something.
Answers go to standard output, everything else (progress, logs, errors) to standard error.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocpp_billing import __version__
from ocpp_billing.config import Config, ConfigError, load_config, parse_instant, read_environment
from ocpp_billing.embedded.database import OutdatedSchemaError, data_dir_of, database, set_up_schema
from ocpp_billing.embedded.postgres import EmbeddedPostgresError
from ocpp_billing.log import configure_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

DONE, FAILED, USAGE, LEFT = 0, 1, 2, 3
EXIT_CODES = {"completed": DONE, "partial": LEFT, "failed": FAILED, "interrupted": FAILED}
# Those of billing.balance, which can only be imported when Django is set up.
BREAKDOWNS = ("day", "reason", "tag", "customer", "subscription")
# What takes longer than this says how it gets on.
QUIET_FOR_S = 2.0


class CommandError(Exception):
    """A command cannot be carried out; the sentence says why and what to do."""


def out(text: str) -> None:
    """Write an answer."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Write something beside the answer."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def out_json(value: Any) -> None:
    """Write an answer as JSON."""
    out(json.dumps(value, ensure_ascii=False))


# -- what commands stand on ----------------------------------------------------------------------------


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


class Progress:
    """Sentences of a long command: on a terminal at once, else only when it takes long."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Say how it gets on."""
        if sys.stderr.isatty() or time.monotonic() - self._began > QUIET_FOR_S:
            note(text)


# -- synchronization and balance -----------------------------------------------------------------------


def sync(config: Config, args: argparse.Namespace) -> int:
    """Synchronize once, in the foreground."""
    from ocpp_billing.sync.clients import require_connections

    try:
        require_connections(config)
    except ConfigError as error:
        for problem in error.problems:
            note(problem)
        return FAILED
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


def balance(config: Config, args: argparse.Namespace) -> int:
    """Print where every watt-hour stands, by a full recount, or broken down."""
    if args.by is None and (args.from_ or args.to):
        raise CommandError("--from and --to choose sessions for --by; the balance itself is always whole.")
    if args.by is not None and args.prove:
        raise CommandError("--prove is about the whole balance: leave --by away.")
    from_, to = (
        _instant(option, value, config) for option, value in (("--from", args.from_), ("--to", args.to))
    )
    with ledger(config):
        if args.by is not None:
            _print_breakdown(config, args, from_, to)
        elif args.prove:
            _print_proof(config, as_json=args.json)
        else:
            from ocpp_billing.billing.balance import read_balance
            from ocpp_billing.report import format_balance

            result = read_balance(config.steve_source)
            if args.json:
                out_json(result.to_json())
            else:
                out(format_balance(result))
    return DONE


def _instant(option: str, value: str | None, config: Config) -> datetime | None:
    try:
        return None if value is None else parse_instant(value, config.timezone)
    except ValueError as error:
        raise CommandError(f"{option} is {value!r}, but must be {error}.") from None


def _print_breakdown(
    config: Config, args: argparse.Namespace, from_: datetime | None, to: datetime | None
) -> None:
    from ocpp_billing.billing.balance import balance_by
    from ocpp_billing.report import format_breakdown

    rows = balance_by(config.steve_source, args.by, from_=from_, to=to, zone=config.timezone)
    if args.json:
        out_json({"by": args.by, "rows": [row.to_json() for row in rows]})
    else:
        out(format_breakdown(rows, args.by))


def _print_proof(config: Config, *, as_json: bool) -> None:
    from ocpp_billing.billing.balance import prove_balance
    from ocpp_billing.report import format_balance, format_proof

    proof = prove_balance(config.steve_source)
    if as_json:
        out_json({**proof.balance.to_json(), "proof": proof.to_json()})
    else:
        out(f"{format_balance(proof.balance)}\n{format_proof(proof)}")


# -- going live ----------------------------------------------------------------------------------------


def go_live(config: Config, args: argparse.Namespace) -> int:
    """Show what would be billed, ask, and begin to bill."""
    try:
        live_from = parse_instant(args.date, config.timezone)
    except ValueError as error:
        raise CommandError(f"--from is {args.date!r}, but must be {error}.") from None
    with ledger(config):
        from ocpp_billing.billing import control

        status = control.read_status(config)
        if status.mode != "shadow":
            control.go_live(config, live_from, by=actor())  # says why not
        lines = control.preview_go_live(config, live_from)
        total_wh = sum(line.energy_wh for line in lines)
        out(f"Billing sessions that stopped at or after {live_from.astimezone(config.timezone).isoformat()}.")
        out(
            f"Of what is queued now, {sum(line.sessions for line in lines)} sessions with "
            f"{total_wh / 1000:,.3f} kWh are sent at the next synchronization:"
        )
        for line in lines:
            out(
                f"  {line.customer} ({line.subscription}): {line.sessions} sessions, "
                f"{line.energy_wh / 1000:,.3f} kWh"
            )
        if not args.yes and not _confirmed("Go live? This cannot be undone."):
            note("Nothing was changed.")
            return FAILED
        control.go_live(config, live_from, by=actor())
        out("Billing is live.")
    return DONE


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandError("There is no terminal to ask on: repeat with --yes.")
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


def pause(config: Config, args: argparse.Namespace) -> int:
    """Stop sending usage events."""
    with ledger(config):
        from ocpp_billing.billing import control

        control.pause(config, by=actor(), reason=args.reason or "paused by a person")
        out("Delivery is paused. Go on with: ocpp-billing resume")
    return DONE


def resume(config: Config, _args: argparse.Namespace) -> int:
    """Send usage events again."""
    with ledger(config):
        from ocpp_billing.billing import control

        out("Delivery goes on." if control.resume(config, by=actor()) else "Delivery was not paused.")
    return DONE


def adopt(config: Config, _args: argparse.Namespace) -> int:
    """Read our events back from Lago into the ledger, after the database was restored."""
    from ocpp_billing.sync.clients import open_clients

    with ledger(config), open_clients(config) as (_, lago):
        from ocpp_billing.billing import control
        from ocpp_billing.billing.adopt import adopt_events
        from ocpp_billing.report import format_run
        from ocpp_billing.sync.foreground import synchronize_once

        progress = Progress()
        control.pause(config, by=control.BY_ITSELF, reason="ocpp-billing adopt is running")
        # The sessions of the lost part of the ledger come back from StEvE first.
        run = synchronize_once(config, by=actor(), on_progress=progress)
        if run.status == "failed":
            out(format_run(run))
            raise CommandError("StEvE and Lago must both answer before events can be adopted.")
        adoption = adopt_events(config, lago, by=actor(), say=progress)
        out(
            f"{adoption.seen} events of this source in Lago: {adoption.adopted} adopted, "
            f"{len(adoption.conflicts)} in conflict (held), {len(adoption.orphans)} without a session."
        )
        for name in adoption.orphans[:20]:
            note(f"without a session in StEvE: {name}")
        if control.resume_by_itself(config, by=actor()):
            out("Delivery goes on with the next synchronization.")
        else:
            out("Delivery stays paused: a person paused it. Go on with: ocpp-billing resume")
    return DONE


def move(config: Config, args: argparse.Namespace) -> int:
    """Move billed sessions to another subscription, after a preview."""
    from ocpp_billing.sync.clients import open_clients

    with ledger(config), open_clients(config) as (_, lago):
        from ocpp_billing.billing.events import format_kwh
        from ocpp_billing.billing.move import carry_out_move, preview_move
        from ocpp_billing.charging.models import ChargingSession
        from ocpp_billing.lago.directory import LagoDirectory
        from ocpp_billing.sync.policy import policy_of

        found = ChargingSession.objects.filter(
            source=config.steve_source, steve_id__in=args.session, superseded_at=None
        )
        missing = set(args.session) - set(found.values_list("steve_id", flat=True))
        if missing:
            raise CommandError(f"There is no session {', '.join(map(str, sorted(missing)))}.")
        directory, policy = LagoDirectory(lago, config.lago_metric_code), policy_of(config)
        moves = preview_move(
            list(found.values_list("pk", flat=True)),
            customer=args.customer,
            subscription=args.subscription,
            policy=policy,
            directory=directory,
        )
        for item in moves:
            for _, old, energy_wh in item.from_:
                how = "refund by credit note" if old in item.refund_by_hand else "taken back"
                out(f"session {item.steve_id}: {format_kwh(energy_wh)} kWh from {old} ({how})")
            out(f"session {item.steve_id}: {format_kwh(item.energy_wh)} kWh to {item.to.row.external_id}")
        if not args.yes and not _confirmed(f"Move {len(moves)} sessions?"):
            note("Nothing was changed.")
            return FAILED
        for item in moves:
            carry_out_move(item, policy=policy, directory=directory, note=args.note, by=actor())
        out(f"{len(moves)} sessions moved; the events go out with the next synchronization.")
    return DONE


# -- stuck sessions ------------------------------------------------------------------------------------


def stuck(config: Config, args: argparse.Namespace) -> int:
    """List the sessions that will hardly ever stop by themselves."""
    from ocpp_billing.report import format_stuck

    with ledger(config):
        from ocpp_billing.charging.closing import list_stuck

        sessions = list_stuck(config)
        if args.json:
            out_json([session.to_json() for session in sessions])
        else:
            out(format_stuck(sessions))
    return DONE


def stuck_close(config: Config, args: argparse.Namespace) -> int:
    """Close a stuck session in StEvE, after a preview."""
    from ocpp_billing.sync.clients import open_clients

    with ledger(config), open_clients(config) as (steve, _):
        from ocpp_billing.billing.events import format_kwh
        from ocpp_billing.charging.closing import close_in_steve, preview_close
        from ocpp_billing.charging.models import ChargingSession

        session = ChargingSession.objects.filter(
            source=config.steve_source, steve_id=args.session, superseded_at=None
        ).first()
        if session is None:
            raise CommandError(f"There is no session {args.session}. See: ocpp-billing stuck")
        preview = preview_close(config, steve, session)
        out(preview.says)
        if not args.yes and not _confirmed("Close it in StEvE? This cannot be undone."):
            note("Nothing was changed.")
            return FAILED
        closed = close_in_steve(config, steve, session, expected_stop_wh=preview.stop_wh, by=actor())
        out(
            f"Session {closed.steve_id} is closed at {closed.stop_wh} Wh: {format_kwh(closed.energy_wh)} "
            "kWh. The next synchronization decides what becomes of it."
        )
    return DONE


# -- mappings ------------------------------------------------------------------------------------------


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
    out(f"{report.created} mappings {did}, {report.unchanged} unchanged, {wrong} lines with errors.")
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


# -- people --------------------------------------------------------------------------------------------


def create_admin(config: Config, args: argparse.Namespace) -> int:
    """Create the first admin from the environment or prompts."""
    email = os.environ.get("ADMIN_EMAIL") or _asked("E-mail: ", "ADMIN_EMAIL")
    name = os.environ.get("ADMIN_NAME") or _asked("Name: ", "ADMIN_NAME")
    password = os.environ.get("ADMIN_PASSWORD") or _asked("Password: ", "ADMIN_PASSWORD", secret=True)
    with ledger(config):
        from ocpp_billing.accounts import first_admin

        try:
            user, made = first_admin.create_admin(
                email, password, name, reset_password=args.reset_password, actor=actor()
            )
        except first_admin.CreateAdminError as error:
            raise CommandError("\n".join(error.problems)) from error
    if made:
        out(f"Admin {user.email} created. Sign in at {config.auth_url}")
    elif args.reset_password:
        out(f"Admin {user.email} was there already; the password was set anew.")
    else:
        out(f"Admin {user.email} was there already; nothing was changed.")
    return DONE


def _asked(prompt: str, variable: str, *, secret: bool = False) -> str:
    if not sys.stdin.isatty():
        raise CommandError(f"{variable} is not set, and there is no terminal to ask on.")
    return getpass.getpass(prompt) if secret else input(prompt)


# -- services ------------------------------------------------------------------------------------------


def web(config: Config, args: argparse.Namespace) -> int:
    """Serve the portal and the API."""
    import uvicorn

    from ocpp_billing.embedded.services import port_is_free

    problems = config.missing("AUTH_SECRET")
    if problems:
        raise ConfigError(problems)
    if not port_is_free(args.host, args.port):
        raise CommandError(f"Port {args.port} on {args.host} is taken. Choose another with --port.")
    with ledger(config):
        from ocpp_billing.alerts.watchman import WorkerGuard

        with WorkerGuard(config):
            uvicorn.run(
                "ocpp_billing.asgi:application",
                host=args.host,
                port=args.port,
                workers=args.processes if args.processes > 1 else None,
                timeout_graceful_shutdown=3,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
            )
    return DONE


def worker(config: Config, _args: argparse.Namespace) -> int:
    """Run the sync worker."""
    with ledger(config):
        from ocpp_billing.sync.worker import Worker

        Worker(config).run()
    return DONE


def migrate(config: Config, _args: argparse.Namespace) -> int:
    """Bring the database's schema up to date."""
    with database(config, note):
        set_up_django()
        from django.core.management import call_command

        call_command("migrate", interactive=False, verbosity=1)
    return DONE


def up(config: Config, args: argparse.Namespace) -> int:
    """Everything on one machine: PostgreSQL, migrations, web and worker."""
    from ocpp_billing.embedded.auth_secret import auth_secret
    from ocpp_billing.embedded.services import Service, Services, port_is_free

    if not port_is_free(args.host, args.port):
        raise CommandError(f"Port {args.port} on {args.host} is taken. Choose another with --port.")
    if config.auth_secret is None:
        os.environ["AUTH_SECRET"] = auth_secret(data_dir_of(config))
    address = read_environment().get("AUTH_URL") or f"http://localhost:{args.port}"
    os.environ["AUTH_URL"] = address
    with database(config, note):
        set_up_django()
        from django.core.management import call_command

        call_command("migrate", interactive=False, verbosity=0)
        services = Services(
            [
                Service("web", ["web", "--host", args.host, "--port", str(args.port)]),
                Service("worker", ["worker"]),
            ]
        )
        services.start()
        try:
            if services.wait_for_port(args.host, args.port):
                out(f"OCPP Billing Sync {__version__}: {address} (Ctrl-C ends it)")
            services.watch()
        finally:
            services.stop()
    return DONE


def demo(_config: Config, args: argparse.Namespace) -> int:
    """Run the whole product on this machine, with recorded sessions of a real StEvE."""
    from ocpp_billing.embedded.demo_command import run_demo

    return run_demo(release=args.release, once=args.once, port=args.port, reload=args.reload)


def simulate(_config: Config, args: argparse.Namespace) -> int:
    """Serve a simulated StEvE or Lago."""
    code: int = args.simulator(args)
    return code


# -- the parser ----------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    from ocpp_billing.simulators import lago, steve_command

    parser = argparse.ArgumentParser(
        prog="ocpp-billing",
        description="Every finished charging session of StEvE becomes exactly one usage event in Lago, "
        "or is visibly held. Settings come from the environment and from .env; see .env.example.",
    )
    parser.add_argument("--version", action="version", version=f"ocpp-billing {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, function: Callable[[Config, argparse.Namespace], int], help_text: str, more: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_text, description=f"{help_text}. {more}".strip())
        added.set_defaults(function=function)
        return added

    def listening(added: argparse.ArgumentParser) -> None:
        added.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
        added.add_argument("--port", type=int, default=8000, help="port to listen on (%(default)s)")

    listening(command("up", up, "everything on one machine: PostgreSQL, migrations, web and worker"))
    added = command("web", web, "serve the portal and the API", "Needs AUTH_SECRET.")
    listening(added)
    added.add_argument("--processes", type=int, default=1, help="web processes beside each other (1)")
    command("worker", worker, "run the sync worker", "A second one is a standby.")
    command("migrate", migrate, "bring the database's schema up to date")
    added = command(
        "sync",
        sync,
        "synchronize once, in the foreground",
        "Exit code 0 completed, 1 failed, 3 partial. Beside a running worker it triggers that and follows.",
    )
    added.add_argument("--json", action="store_true", help="print the summary as JSON")
    added = command(
        "balance",
        balance,
        "show where every watt-hour stands",
        "Always added up in full, never taken from counters.",
    )
    added.add_argument("--json", action="store_true", help="print it as JSON")
    added.add_argument("--prove", action="store_true", help="compare the counters with it and put them right")
    added.add_argument("--by", choices=BREAKDOWNS, help="break it down")
    for option, help_text in (("from", "at or after"), ("to", "before")):
        added.add_argument(
            f"--{option}",
            dest="from_" if option == "from" else "to",
            metavar="DATE",
            help=f"with --by: sessions that stopped {help_text} this date (00:00 in SYNC_TIMEZONE) "
            "or date-time",
        )
    added = command(
        "go-live",
        go_live,
        "begin to bill, after a preview",
        "Sessions that stopped before the date are never billed.",
    )
    added.add_argument(
        "--from",
        dest="date",
        required=True,
        metavar="DATE",
        help="bill sessions that stopped at or after this date (00:00 in SYNC_TIMEZONE) or date-time",
    )
    added.add_argument("--yes", action="store_true", help="do not ask")
    added = command("pause", pause, "stop sending usage events; they stay queued")
    added.add_argument("--reason", default="", help="why, for the others")
    command("resume", resume, "send usage events again")
    command(
        "adopt",
        adopt,
        "read our events back from Lago, after the database was restored",
        "Nothing is sent before; safe to repeat.",
    )
    added = command("move", move, "move billed sessions to another subscription, after a preview")
    added.add_argument("session", type=int, nargs="+", metavar="ID", help="StEvE's transaction ids")
    added.add_argument("--customer", required=True, help="Lago's external customer id")
    added.add_argument("--subscription", help="Lago's external subscription id; else the customer's only one")
    added.add_argument("--note", default="", help="why, for the audit")
    added.add_argument("--yes", action="store_true", help="do not ask")
    _add_stuck(command("stuck", stuck, "list the sessions that will hardly ever stop by themselves"))
    _add_mappings(command("mappings", mappings_export, "import and export mappings as CSV"))
    added = command(
        "create-admin",
        create_admin,
        "create the first admin, from ADMIN_EMAIL, ADMIN_PASSWORD and ADMIN_NAME or prompts",
        "Safe to repeat: an admin who is there already is left as is.",
    )
    added.add_argument("--reset-password", action="store_true", help="set an existing admin's password anew")
    added = command("demo", demo, "the whole product on this machine, with simulated StEvE and Lago")
    added.add_argument("--once", action="store_true", help="one synchronization, then the balance, then end")
    added.add_argument("--release", default="3.14.1", help="recording to use: 3.7.1, 3.9.0 or 3.14.1")
    added.add_argument("--port", type=int, default=8000, help="port of the portal (%(default)s)")
    added.add_argument("--reload", action="store_true", help="restart web and worker when a file changes")
    simulators = command("simulate", simulate, "serve a simulated StEvE or Lago").add_subparsers(
        metavar="SYSTEM", required=True
    )
    for name, module in (("steve", steve_command), ("lago", lago)):
        simulator = simulators.add_parser(name, help=f"a simulated {'StEvE' if name == 'steve' else 'Lago'}")
        module.configure(simulator)  # both modules have the same two functions
        simulator.set_defaults(function=simulate, simulator=module.run)
    return parser


def _add_stuck(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    close = parser.add_subparsers(metavar="ACT").add_parser(
        "close",
        help="close one in StEvE (3.12 and newer), after a preview",
        description="StEvE writes a stop of its own making and tells the charger nothing.",
    )
    close.add_argument("session", type=int, metavar="ID", help="StEvE's transaction id")
    close.add_argument("--yes", action="store_true", help="do not ask")
    close.set_defaults(function=stuck_close)


def _add_mappings(parser: argparse.ArgumentParser) -> None:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command; every error that an operator can mend is one sentence, not a traceback."""
    args = build_parser().parse_args(arguments)
    try:
        config = load_config()
        configure_logging(level=_log_level(config, args), json_lines=config.log_format == "json")
        code: int = args.function(config, args)
    except ConfigError as error:
        for problem in error.problems:
            note(problem)
        return USAGE
    except (CommandError, EmbeddedPostgresError, OutdatedSchemaError) as error:
        note(str(error))
        return FAILED
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        sentence = _understood(error)
        if sentence is None:
            raise
        note(sentence)
        return FAILED
    return code


def _log_level(config: Config, args: argparse.Namespace) -> str:
    """Services log what they do; a command that a person waits for says it itself, and logs warnings."""
    if args.function in {up, web, worker} or config.log_level != "info":
        return config.log_level
    return "error"


def _understood(error: Exception) -> str | None:
    """The sentence for errors whose classes can only be imported once Django is there."""
    from django.db import DatabaseError, InterfaceError, OperationalError

    from ocpp_billing.billing.control import ControlError
    from ocpp_billing.billing.move import MoveError
    from ocpp_billing.charging.closing import ClosingError
    from ocpp_billing.lago.errors import LagoError
    from ocpp_billing.mappings.store import MappingError
    from ocpp_billing.steve.errors import SteveError
    from ocpp_billing.sync.database import FenceError

    if isinstance(error, (ClosingError, ControlError, LagoError, MappingError, MoveError, SteveError)):
        return str(error)
    if isinstance(error, FenceError):
        return f"{error}. The other worker goes on with the work."
    if isinstance(error, (OperationalError, InterfaceError)) or "psycopg.OperationalError" in repr(
        type(error)
    ):
        return f"The database cannot be used: {str(error).strip()}. Check DATABASE_URL."
    if isinstance(error, OSError) and error.filename and not isinstance(error, DatabaseError):
        return f"{error.filename}: {error.strerror}."
    return None


if __name__ == "__main__":
    sys.exit(main())
