"""``ocpp-billing setup-lago``: create what is missing in Lago, after showing it."""

from __future__ import annotations

import argparse
import re
from decimal import Decimal
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
)

if TYPE_CHECKING:
    from ocpp_billing.config import Config
    from ocpp_billing.lago.setup import Setup
    from ocpp_billing.lago.wire import Organization

INTERVALS = ("weekly", "monthly", "quarterly", "yearly")


def add_commands(commands: Commands) -> None:
    """Add ``setup-lago``."""
    added = commands.add(
        "setup-lago",
        setup_lago,
        "create what is missing in Lago: the billable metric and, with --plan, a plan to try it",
        "Shows it first. What is there is never changed; what does not fit is explained. Safe to repeat.",
    )
    added.add_argument("--plan", metavar="CODE", help="a plan with a price per kWh, to try billing with")
    added.add_argument("--price", type=_price, default=Decimal("0.39"), help="of a kWh (%(default)s)")
    added.add_argument("--currency", type=_currency, default="EUR", help="of the plan (%(default)s)")
    added.add_argument("--interval", choices=INTERVALS, default="monthly", help="of the plan (%(default)s)")
    added.add_argument("--yes", action="store_true", help="do not ask")


def _price(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no price such as 0.39")
    return Decimal(text)


def _currency(text: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no currency such as EUR")
    return text


def setup_lago(config: Config, args: argparse.Namespace) -> int:
    """Show what is missing, ask, and create it."""
    from ocpp_billing.sync.clients import lago_client

    with lago_client(config) as lago, ledger(config):
        from ocpp_billing.lago.setup import PlanWish, create_missing, look_at_setup

        wish = None if args.plan is None else PlanWish(args.plan, args.price, args.currency, args.interval)
        organization = lago.organization()
        _refuse_another(config, organization)
        out(f"Lago at {config.lago_api_url}, organisation {organization.name or organization.lago_id}")
        setup = look_at_setup(lago, config.lago_metric_code, wish)
        _show(setup)
        if setup.mismatches:
            return FAILED
        if not setup.missing:
            out("Nothing is missing.")
            return DONE
        if not args.yes and not confirmed("Create it?"):
            note("Nothing was changed.")
            return FAILED
        done = create_missing(lago, setup)
        _record(setup, organization)
        if done.missing or done.mismatches:
            _show(done)
            return FAILED
        out("Created.")
        if wish is not None:
            out("Give customers a subscription to the plan in Lago, and map their id tags to them.")
    return DONE


def _show(setup: Setup) -> None:
    for what, there in (("billable metric", setup.metric), ("plan", setup.plan)):
        if there is not None:
            out(f"  there    {what} {there.code}")
    for sentence in setup.missing:
        out(f"  missing  {sentence}")
    for sentence in setup.remarks:
        out(f"  look     {sentence}")
    for sentence in setup.mismatches:
        out(f"  PROBLEM  {sentence}")


def _refuse_another(config: Config, organization: Organization) -> None:
    from ocpp_billing.billing.models import DeliveryControl

    control = DeliveryControl.objects.filter(source_id=config.steve_source).first()
    if control is not None and control.lago_organization_id not in {None, organization.lago_id}:
        raise CommandError(
            f"LAGO_API_KEY belongs to the organisation {organization.name or organization.lago_id}, but this "
            f"ledger bills into {control.lago_organization_name or control.lago_organization_id}. Put the "
            "right key back."
        )


def _record(setup: Setup, organization: Organization) -> None:
    from ocpp_billing.accounts import audit
    from ocpp_billing.effects import effect

    with effect("db commit set up"):
        audit.record(
            "lago.set_up",
            actor=actor(),
            target=f"lago organisation {organization.lago_id}",
            after={"created": list(setup.missing)},
        )
