"""Going live, pausing, and what becomes of events that Lago has: go-live, pause, resume, adopt, move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing.commands.ground import (
    DONE,
    FAILED,
    CommandError,
    Commands,
    Progress,
    actor,
    confirmed,
    instant_of,
    ledger,
    note,
    out,
    transaction_id,
)
from ocpp_billing.energy import say_kwh

if TYPE_CHECKING:
    import argparse

    from ocpp_billing.config import Config


def add_commands(commands: Commands) -> None:
    """Add ``go-live``, ``pause``, ``resume``, ``adopt`` and ``move``."""
    added = commands.add(
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
    added = commands.add("pause", pause, "stop sending usage events; they stay queued")
    added.add_argument("--reason", default="", help="why, for the others")
    commands.add("resume", resume, "send usage events again")
    commands.add(
        "adopt",
        adopt,
        "read our events back from Lago, after the database was restored",
        "Nothing is sent before; safe to repeat.",
    )
    added = commands.add("move", move, "move billed sessions to another subscription, after a preview")
    added.add_argument(
        "session", type=transaction_id, nargs="+", metavar="ID", help="StEvE's transaction ids"
    )
    added.add_argument("--customer", required=True, help="Lago's external customer id")
    added.add_argument("--subscription", help="Lago's external subscription id; else the customer's only one")
    added.add_argument("--note", default="", help="why, for the audit")
    added.add_argument("--yes", action="store_true", help="do not ask")


def go_live(config: Config, args: argparse.Namespace) -> int:
    """Show what would be billed, ask, and begin to bill."""
    live_from = instant_of("--from", args.date, config)
    with ledger(config):
        from ocpp_billing.billing import control

        control.refuse_if_live(control.read_status(config))
        lines = control.preview_go_live(config, live_from)
        total_wh = sum(line.energy_wh for line in lines)
        out(f"Billing sessions that stopped at or after {live_from.astimezone(config.timezone).isoformat()}.")
        out(
            f"Of what is queued now, {sum(line.sessions for line in lines)} sessions with "
            f"{say_kwh(total_wh)} kWh are sent at the next synchronization:"
        )
        for line in lines:
            out(
                f"  {line.customer} ({line.subscription}): {line.sessions} sessions, "
                f"{say_kwh(line.energy_wh)} kWh"
            )
        if not args.yes and not confirmed("Go live? This cannot be undone."):
            note("Nothing was changed.")
            return FAILED
        control.go_live(config, live_from, by=actor())
        out("Billing is live. The next synchronization sends what is queued.")
        out("Where it stands: ocpp-billing balance")
    return DONE


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

    with open_clients(config) as (_, lago), ledger(config):
        from ocpp_billing.billing import control
        from ocpp_billing.billing.adopt import adopt_events
        from ocpp_billing.report import format_run
        from ocpp_billing.sync.foreground import synchronize_once

        progress = Progress()
        control.pause(config, by=control.BY_ITSELF, reason=control.ADOPTING)
        # The sessions of the lost part of the ledger come back from StEvE first.
        run = synchronize_once(config, by=actor(), on_progress=progress)
        if run.status == "failed":
            out(format_run(run))
            raise CommandError("StEvE and Lago must both answer before events can be adopted.")
        adoption = adopt_events(config, lago, by=actor(), say=progress)
        out(
            f"{adoption.seen} events of this source in Lago: {adoption.adopted} adopted, "
            f"{len(adoption.conflicts)} in conflict (held), {len(adoption.orphans)} without a session, "
            f"{len(adoption.turned_up)} that were given up."
        )
        for name in adoption.orphans[:20]:
            note(f"without a session in StEvE: {name}")
        status = control.resume_after_adopting(config, by=actor())
        if status.paused_at is not None:
            out(
                f"Delivery stays paused by {status.paused_by}: {status.pause_reason} "
                "Go on with: ocpp-billing resume"
            )
        elif status.mode == "shadow":
            out("What Lago holds is billed. Nothing else is sent before going live: ocpp-billing go-live")
        else:
            out("Delivery goes on with the next synchronization.")
    return DONE


def move(config: Config, args: argparse.Namespace) -> int:
    """Move billed sessions to another subscription, after a preview."""
    from ocpp_billing.sync.clients import lago_client

    with lago_client(config) as lago, ledger(config):
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
                out(f"session {item.steve_id}: {say_kwh(energy_wh)} kWh from {old} ({how})")
            out(f"session {item.steve_id}: {say_kwh(item.energy_wh)} kWh to {item.to.row.external_id}")
        if not args.yes and not confirmed(f"Move {len(moves)} sessions?"):
            note("Nothing was changed.")
            return FAILED
        for item in moves:
            carry_out_move(item, policy=policy, directory=directory, note=args.note, by=actor())
        out(f"{len(moves)} sessions moved; the events go out with the next synchronization.")
    return DONE
