"""Without real systems: the demo, and simulated StEvE and Lago as servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing.simulators import lago, steve_command

if TYPE_CHECKING:
    import argparse

    from ocpp_billing.commands.ground import Commands
    from ocpp_billing.config import Config


def add_commands(commands: Commands) -> None:
    """Add ``demo`` and ``simulate``."""
    added = commands.add("demo", demo, "the whole product on this machine, with simulated StEvE and Lago")
    added.add_argument("--once", action="store_true", help="one synchronization, then the balance, then end")
    added.add_argument("--release", default="3.14.1", help="recording to use: 3.7.1, 3.9.0 or 3.14.1")
    added.add_argument("--port", type=int, default=8000, help="port of the portal (%(default)s)")
    added.add_argument("--reload", action="store_true", help="restart web and worker when a file changes")
    simulators = commands.add("simulate", simulate, "serve a simulated StEvE or Lago").add_subparsers(
        metavar="SYSTEM", required=True
    )
    for name, module in (("steve", steve_command), ("lago", lago)):
        simulator = simulators.add_parser(name, help=f"a simulated {'StEvE' if name == 'steve' else 'Lago'}")
        module.configure(simulator)  # both modules have the same two functions
        simulator.set_defaults(function=simulate, simulator=module.run)


def demo(_config: Config, args: argparse.Namespace) -> int:
    """Run the whole product on this machine, with recorded sessions of a real StEvE."""
    from ocpp_billing.embedded.demo_command import run_demo

    return run_demo(release=args.release, once=args.once, port=args.port, reload=args.reload)


def simulate(_config: Config, args: argparse.Namespace) -> int:
    """Serve a simulated StEvE or Lago."""
    code: int = args.simulator(args)
    return code
