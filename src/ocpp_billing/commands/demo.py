"""What ``./run demo`` and ``./run dev`` do, step by step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import ocpp_billing
from ocpp_billing.commands.ground import CommandError, UsageError
from ocpp_billing.config import load_config
from ocpp_billing.embedded.database import binaries_dir_of, data_dir_of, set_up_schema
from ocpp_billing.embedded.demo import (
    ADMIN_EMAIL,
    DemoWorld,
    fresh_database,
    furnish,
    isolate_environment,
    say,
)
from ocpp_billing.embedded.keeper import Keeper
from ocpp_billing.embedded.postgres import EmbeddedPostgres
from ocpp_billing.embedded.services import Service, Services, obstacle_to_listening
from ocpp_billing.energy import say_kwh

NO_RECORDING = "There is no recording of {release}. There are 3.7.1, 3.9.0 and 3.14.1."


def run_demo(*, release: str, once: bool, empty: bool, port: int, reload: bool) -> int:
    """Set everything up, synchronize once, show the outcome, and serve the portal until Ctrl-C.

    Returns:
        The exit code of the first synchronization; 0 after serving.
    """
    obstacle = None if once else obstacle_to_listening("127.0.0.1", port)
    if obstacle is not None:
        raise CommandError(obstacle)
    try:
        world = DemoWorld.of_release(release)
    except ValueError:
        raise UsageError(NO_RECORDING.format(release=release)) from None
    world.start()
    isolate_environment(world)
    os.environ["AUTH_URL"] = f"http://localhost:{port}"
    try:
        config = load_config()
        folder, programs = data_dir_of(config) / "demo", binaries_dir_of(config)
        with EmbeddedPostgres(folder, notice=say, binaries_dir=programs) as server, Keeper(server):
            os.environ["DATABASE_URL"] = server.url
            return _demonstrate(world, release=release, once=once, empty=empty, port=port, reload=reload)
    finally:
        world.stop()


def _demonstrate(
    world: DemoWorld,
    *,
    release: str,
    once: bool,
    empty: bool,
    port: int,
    reload: bool,
) -> int:
    from ocpp_billing.commands.ground import set_up_django

    fresh_database()
    set_up_django()
    set_up_schema(embedded=True, notice=say)
    password = furnish(world, empty=empty)
    if once:
        return _synchronize(world, release)
    services = Services([Service("web", ["web", "--port", str(port)]), Service("worker", ["worker"])])
    services.start()
    try:
        if not empty:
            _synchronize(world, release)
        if not services.wait_for_port("127.0.0.1", port):
            return 0
        say("")
        say(f"Portal    http://localhost:{port}")
        say(f"Sign in   {ADMIN_EMAIL}")
        say(f"Password  {password}")
        say(f"StEvE     {world.steve.base_url} (simulated)")
        say(f"Lago      {world.lago.url} (simulated)")
        if empty:
            say("Nothing is mapped and nothing is sent yet: the portal leads on (and docs/tutorial.md).")
        say("Ctrl-C ends it all.")
        if reload:
            _serve_reloading(services)
        else:
            services.watch()
    finally:
        services.stop()
    return 0


def _synchronize(world: DemoWorld, release: str) -> int:
    """One synchronization, its summary, the balance, and what the simulated Lago says itself."""
    from ocpp_billing.billing.balance import read_balance
    from ocpp_billing.commands.sync import synchronize_and_report
    from ocpp_billing.report import format_balance

    say(f"Sessions recorded from StEvE {release}, and a simulated Lago:")
    code = synchronize_and_report(load_config(), as_json=False)
    say("")
    say(format_balance(read_balance(load_config().steve_source)))
    say("")
    say(f"Lago's own ledger counts {say_kwh(world.lago.summary()['energy_wh'])} kWh.")
    return code


def _serve_reloading(services: Services) -> None:
    """Serve, and start web and worker again whenever a file of the package changes."""
    from watchfiles import watch

    source = Path(ocpp_billing.__file__).parent
    for changes in watch(source, stop_event=services.stopping, rust_timeout=500, yield_on_timeout=True):
        if changes:
            names = ", ".join(sorted({Path(path).name for _, path in changes}))
            sys.stderr.write(f"{names} changed: web and worker start again\n")
            services.restart()
        services.revive()


def serve_demo_world(*, release: str, host: str, steve_port: int, lago_port: int) -> int:
    """Serve the demo's two systems alone, for a product that runs elsewhere, until SIGINT or SIGTERM."""
    try:
        world = DemoWorld.of_release(release, host=host, steve_port=steve_port, lago_port=lago_port)
    except ValueError:
        raise UsageError(NO_RECORDING.format(release=release)) from None
    except OSError as error:
        raise CommandError(
            f"The ports {steve_port} (StEvE) and {lago_port} (Lago) cannot be had: {error.strerror}. Choose "
            "others with --steve-port and --lago-port."
        ) from None
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    world.start()
    try:
        for name, value in world.environment().items():
            say(f"{name}={value}")
        over.wait()
    finally:
        world.stop()
    return 0
