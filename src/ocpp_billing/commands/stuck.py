"""``ocpp-billing stuck``: sessions that will hardly ever stop by themselves, and closing one in StEvE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing.commands.ground import (
    DONE,
    FAILED,
    CommandError,
    Commands,
    actor,
    confirmed,
    ledger,
    note,
    out,
    out_json,
    transaction_id,
)

if TYPE_CHECKING:
    import argparse

    from ocpp_billing.config import Config


def add_commands(commands: Commands) -> None:
    """Add ``stuck`` and ``stuck close``."""
    added = commands.add("stuck", stuck, "list the sessions that will hardly ever stop by themselves")
    added.add_argument("--json", action="store_true", help="print the list as JSON")
    close = added.add_subparsers(metavar="ACT").add_parser(
        "close",
        help="close one in StEvE (3.12 and newer), after a preview",
        description="StEvE writes a stop of its own making and tells the charger nothing.",
    )
    close.add_argument("session", type=transaction_id, metavar="ID", help="StEvE's transaction id")
    close.add_argument("--yes", action="store_true", help="do not ask")
    close.set_defaults(function=stuck_close)


def stuck(config: Config, args: argparse.Namespace) -> int:
    """List the sessions that will hardly ever stop by themselves."""
    with ledger(config):
        from ocpp_billing.billing.closing import list_stuck
        from ocpp_billing.report import format_stuck

        sessions = list_stuck(config)
        if args.json:
            out_json([session.to_json() for session in sessions])
        else:
            out(format_stuck(sessions, config.auth_url))
    return DONE


def stuck_close(config: Config, args: argparse.Namespace) -> int:
    """Close a stuck session in StEvE, after a preview."""
    from ocpp_billing.sync.clients import steve_client

    with steve_client(config) as steve, ledger(config):
        from ocpp_billing.billing.closing import close_in_steve, preview_close
        from ocpp_billing.charging.models import ChargingSession
        from ocpp_billing.energy import say_kwh

        session = ChargingSession.objects.filter(
            source=config.steve_source, steve_id=args.session, superseded_at=None
        ).first()
        if session is None:
            raise CommandError(f"There is no session {args.session}. See: ocpp-billing stuck")
        preview = preview_close(config, steve, session)
        out(preview.says)
        if not args.yes and not confirmed("Close it in StEvE? This cannot be undone."):
            note("Nothing was changed.")
            return FAILED
        closed = close_in_steve(config, steve, session, expected_stop_wh=preview.stop_wh, by=actor())
        out(
            f"Session {closed.steve_id} is closed at {say_kwh(closed.stop_wh)} kWh: "
            f"{say_kwh(closed.energy_wh)} kWh. The next synchronization decides what becomes of it."
        )
    return DONE
