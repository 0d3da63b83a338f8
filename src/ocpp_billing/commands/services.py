"""The services: everything at once, or web, worker and migrations by themselves; and whether they live."""

from __future__ import annotations

import dataclasses
import os
import signal
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

from ocpp_billing import __version__
from ocpp_billing.commands.ground import (
    DONE,
    FAILED,
    CommandError,
    Commands,
    ledger,
    note,
    out,
    port_number,
    set_up_django,
    whole_number,
)
from ocpp_billing.config import Config, ConfigError, read_environment
from ocpp_billing.embedded.database import data_dir_of, database
from ocpp_billing.embedded.postgres import running_url
from ocpp_billing.schema import bring_up_to_date

if TYPE_CHECKING:
    import argparse

# So long does a web process that ends wait for letters that are under way; Docker kills after 10 seconds.
LETTERS_WITHIN_S = 4.0


def add_commands(commands: Commands) -> None:
    """Add ``up``, ``web``, ``worker``, ``migrate`` and ``healthy``."""
    added = commands.add(
        "up", up, "everything on one machine: PostgreSQL, migrations, web and worker", service=True
    )
    _listens(added)
    added = commands.add("web", web, "serve the portal and the API", "Needs AUTH_SECRET.", service=True)
    _listens(added)
    added.add_argument(
        "--processes", type=whole_number(1, 64), default=1, help="web processes beside each other (1)"
    )
    commands.add("worker", worker, "run the sync worker", "A second one is a standby.", service=True)
    commands.add("migrate", migrate, "bring the database's schema up to date")
    added = commands.add(
        "healthy",
        healthy,
        "check that this machine's web process or worker lives",
        "For health checks of containers and service managers. Exit code 0 when it does, else 1.",
    )
    added.add_argument("what", choices=["web", "worker"])
    added.add_argument("--port", type=port_number, default=8000, help="port of the web process (%(default)s)")


def _listens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=port_number, default=8000, help="port to listen on (%(default)s)")


def _check_port(args: argparse.Namespace) -> None:
    from ocpp_billing.embedded.services import obstacle_to_listening

    obstacle = obstacle_to_listening(args.host, args.port)
    if obstacle is not None:
        raise CommandError(obstacle)


def people_come_to(port: int) -> str:
    """AUTH_URL; where nobody set it, this machine at the port that is listened on."""
    return read_environment().get("AUTH_URL") or f"http://localhost:{port}"


def up(config: Config, args: argparse.Namespace) -> int:
    """Everything on one machine: PostgreSQL, migrations, web and worker."""
    from ocpp_billing.embedded.auth_secret import auth_secret
    from ocpp_billing.embedded.services import Service, Services

    _check_port(args)
    if config.auth_secret is None:
        os.environ["AUTH_SECRET"] = auth_secret(data_dir_of(config))
    os.environ["AUTH_URL"] = address = people_come_to(args.port)
    with database(config, note):
        set_up_django()
        bring_up_to_date(verbosity=0, notice=note)
        services = Services(
            [
                Service("web", ["web", "--host", args.host, "--port", str(args.port)]),
                Service("worker", ["worker"]),
            ],
        )
        services.start()
        try:
            if services.wait_for_port(args.host, args.port):
                out(f"OCPP Billing Sync {__version__}: {address} (Ctrl-C ends it)")
            services.watch()
        finally:
            services.stop()
    return DONE


def web(config: Config, args: argparse.Namespace) -> int:
    """Serve the portal and the API."""
    import uvicorn

    problems = config.missing("AUTH_SECRET")
    if problems:
        raise ConfigError(problems)
    _check_port(args)
    os.environ["AUTH_URL"] = address = people_come_to(args.port)
    with ledger(config):
        from ocpp_billing.accounts import letters
        from ocpp_billing.alerts.watchman import WorkerGuard

        # The server ends in order, and then sends itself the signal again, which would cut off what follows.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with WorkerGuard(dataclasses.replace(config, auth_url=address)):
            try:
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
            except SystemExit:  # it has logged why; its own codes mean something else here
                return FAILED
            letters.finish(LETTERS_WITHIN_S)
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
        bring_up_to_date(verbosity=1, notice=note)
    return DONE


def healthy(config: Config, args: argparse.Namespace) -> int:
    """Check that this machine's web process answers, or that its worker was heard of lately."""
    if args.what == "web":
        return _web_answers(args.port)
    if config.database_url is None and running_url(data_dir_of(config)) is None:
        note("The embedded database is not running, so neither is a worker: start ocpp-billing up.")
        return FAILED
    with ledger(config):
        from ocpp_billing import clock
        from ocpp_billing.sync.liveness import heard_of_here

        if heard_of_here(clock.now()):
            out("The worker of this machine lives.")
            return DONE
    note("No worker of this machine was heard of lately: look at its log.")
    return FAILED


def _web_answers(port: int) -> int:
    """Whether ``/healthz`` answers; that one needs neither the database nor a sign-in."""
    connection = HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        note(f"The web process does not answer on port {port}: {error}")
        return FAILED
    finally:
        connection.close()
    if status != HTTPStatus.OK:
        note(f"The web process answers {status} on port {port}: look at its log.")
        return FAILED
    out("The web process lives.")
    return DONE
