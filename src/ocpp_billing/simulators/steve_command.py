"""``ocpp-billing simulate steve``: a simulated StEvE as a server of its own."""

from __future__ import annotations

import signal
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ocpp_billing.simulators.arguments import (
    amount,
    port_or_any,
    say_cannot_listen,
    say_wrong,
    whole_number,
)
from ocpp_billing.simulators.steve import DEFAULT_HEADER, DEFAULT_PASSWORD, DEFAULT_USERNAME, SteveSimulator
from ocpp_billing.simulators.steve_recording import RECORDED, recording_offset
from ocpp_billing.simulators.steve_release import MINORS

if TYPE_CHECKING:
    import argparse

DEFAULT_PORT = 8180


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ocpp-billing simulate steve``."""
    add = parser.add_argument
    add("--release", default="3.14", metavar="R", help=f"one of {', '.join(MINORS)} or a full version (3.14)")
    add("--count", type=whole_number(0, 10_000_000), default=0, metavar="N", help="sessions to make up (0)")
    add(
        "--seed", type=whole_number(0, 10**18 - 1), default=1, metavar="S", help="of the made-up sessions (1)"
    )
    add(
        "--days",
        type=amount(0, 36_500),
        default=90.0,
        metavar="D",
        help="the days before now that they spread over (90)",
    )
    add(
        "--port",
        type=port_or_any,
        default=DEFAULT_PORT,
        metavar="P",
        help=f"0 = any free port ({DEFAULT_PORT})",
    )
    add("--host", default="127.0.0.1", metavar="H", help="interface to listen on (127.0.0.1)")
    add("--recording", metavar="R", help=f"begin with recorded sessions: {', '.join(RECORDED)}")
    add(
        "--credentials",
        default=f"{DEFAULT_USERNAME}:{DEFAULT_PASSWORD}",
        metavar="USER:PASSWORD",
        help="of HTTP Basic; up to 3.7 the password is the API key (%(default)s)",
    )
    add("--api-key-header", default=DEFAULT_HEADER, metavar="NAME", help="up to 3.7 (%(default)s)")
    add("--context-path", default="/steve", metavar="PATH", help="may be empty (%(default)s)")
    add(
        "--cost",
        type=amount(0, 1_000),
        default=0.0,
        metavar="FACTOR",
        help="as slow as a real server; 1 = measured",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM.

    Returns:
        0 after a signal; with one line on standard error, 1 when the port cannot be had, 2 when an argument
        is wrong.
    """
    over = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: over.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        simulator = _prepared(args)
    except ValueError as error:
        return say_wrong(error)
    except OSError as error:
        return say_cannot_listen(args.host, args.port, error)
    else:
        with simulator:
            kind = "HTTP Basic" if simulator.release.basic_auth else f"API key in {args.api_key_header}"
            count = simulator.store.alive_count
            sys.stdout.write(
                f"StEvE {simulator.release}, {count} transactions, {kind}\n{simulator.base_url}\n"
            )
            sys.stdout.flush()
            over.wait()
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepared(args: argparse.Namespace) -> SteveSimulator:
    username, _, password = args.credentials.partition(":")
    if not username or not password:
        raise ValueError("--credentials must look like USER:PASSWORD")
    simulator = SteveSimulator(
        args.release,
        username=username,
        password=password,
        api_key_header=args.api_key_header,
        context_path=args.context_path,
        cost_model=args.cost,
        host=args.host,
        port=args.port,
    )
    # A benchmark sends millions of requests; nobody asks this process for the list.
    simulator.keep_requests = False
    try:
        if args.recording:
            shift = recording_offset(datetime.now(UTC), args.recording)
            simulator.load_recording(args.recording, shift=shift)
        if args.count:
            simulator.generate(args.count, args.seed, days=args.days)
    except ValueError:
        simulator.stop()
        raise
    return simulator
