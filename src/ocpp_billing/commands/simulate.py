"""Without real systems: the demo, and simulated StEvE and Lago as servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing.commands.ground import port_number, port_or_any
from ocpp_billing.simulators import lago, steve_command

if TYPE_CHECKING:
    import argparse

    from ocpp_billing.commands.ground import Commands
    from ocpp_billing.config import Config

RECORDINGS = "recording to use: 3.7.1, 3.9.0 or 3.14.1"


def add_commands(commands: Commands) -> None:
    """Add ``demo`` and ``simulate``."""
    added = commands.add("demo", demo, "the whole product on this machine, with simulated StEvE and Lago")
    added.add_argument("--once", action="store_true", help="one synchronization, then the balance, then end")
    added.add_argument("--release", default="3.14.1", help=RECORDINGS)
    added.add_argument(
        "--empty", action="store_true", help="without mappings and not live: set it up by yourself"
    )
    added.add_argument("--port", type=port_number, default=8000, help="port of the portal (%(default)s)")
    added.add_argument("--reload", action="store_true", help="restart web and worker when a file changes")
    simulators = commands.add("simulate", None, "serve a simulated StEvE or Lago").add_subparsers(
        metavar="SYSTEM", required=True
    )
    for name, module in (("steve", steve_command), ("lago", lago)):
        simulator = simulators.add_parser(name, help=f"a simulated {'StEvE' if name == 'steve' else 'Lago'}")
        module.configure(simulator)  # both modules have the same two functions
        simulator.set_defaults(function=simulate, simulator=module.run)
    both = simulators.add_parser("demo", help="both, as the demo has them, for a product that runs elsewhere")
    both.add_argument("--release", default="3.14.1", help=RECORDINGS)
    both.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    # As real ones have them, so that addresses can stand in a file of settings.
    both.add_argument(
        "--steve-port", type=port_or_any, default=8180, metavar="P", help="0 = any free (%(default)s)"
    )
    both.add_argument(
        "--lago-port", type=port_or_any, default=3000, metavar="P", help="0 = any free (%(default)s)"
    )
    both.set_defaults(function=simulate_demo)


def demo(_config: Config, args: argparse.Namespace) -> int:
    """Run the whole product on this machine, with recorded sessions of a real StEvE."""
    from ocpp_billing.commands.demo import run_demo

    return run_demo(
        release=args.release, once=args.once, empty=args.empty, port=args.port, reload=args.reload
    )


def simulate_demo(_config: Config, args: argparse.Namespace) -> int:
    """Serve the demo's StEvE and Lago."""
    from ocpp_billing.commands.demo import serve_demo_world

    return serve_demo_world(
        release=args.release, host=args.host, steve_port=args.steve_port, lago_port=args.lago_port
    )


def simulate(_config: Config, args: argparse.Namespace) -> int:
    """Serve a simulated StEvE or Lago."""
    code: int = args.simulator(args)
    return code
