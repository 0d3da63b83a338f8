"""``ocpp-billing pseudonymise``: id tags that are gone from StEvE become unreadable."""

from __future__ import annotations

import argparse
from datetime import timedelta
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
    from datetime import datetime

    from ocpp_billing.charging.pseudonyms import Prospect
    from ocpp_billing.config import Config

# Longer than anything is kept.
MAX_DAYS = 36_500


def add_commands(commands: Commands) -> None:
    """Add ``pseudonymise``."""
    added = commands.add(
        "pseudonymise",
        pseudonymise,
        "make id tags unreadable that are gone from StEvE",
        "A pseudonym takes the tag's place everywhere but in usage events; no amount changes.",
    )
    which = added.add_mutually_exclusive_group(required=True)
    which.add_argument("--tag", metavar="TEXT", help="this tag, in any case")
    which.add_argument(
        "--gone-for",
        type=_days,
        metavar="DAYS",
        help="all tags that have been gone for so many days; those that something speaks against are left",
    )
    added.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    added.add_argument("--yes", action="store_true", help="do not ask")


def pseudonymise(config: Config, args: argparse.Namespace) -> int:
    """Make tags unreadable, after a preview."""
    with ledger(config):
        from ocpp_billing import clock

        now = clock.now()
        ready = _ready(config, args, now)
        for prospect in ready if args.dry_run or not args.yes else []:
            out(f"Tag {prospect.id_tag} with {prospect.sessions} sessions would get a pseudonym.")
        if args.dry_run or not ready:
            note("Nothing was changed.")
            return DONE
        if not args.yes and not confirmed("Make this unreadable? Only a backup could tell the tags again."):
            note("Nothing was changed.")
            return FAILED
        return _carry_out(config, ready, now)


def _ready(config: Config, args: argparse.Namespace, now: datetime) -> list[Prospect]:
    """The tags that can become unreadable; says why the others cannot."""
    from ocpp_billing.charging.pseudonyms import find_prospect, list_prospects

    if args.gone_for is not None:
        found = list_prospects(config.steve_source, now - args.gone_for, now)
        for prospect in found:
            if prospect.against:
                out(f"Tag {prospect.id_tag} stays as it is: {' '.join(prospect.against)}")
        return [prospect for prospect in found if not prospect.against]
    prospect = find_prospect(config.steve_source, args.tag, now)
    if prospect.is_pseudonym:
        out(f"{prospect.id_tag} is a pseudonym already.")
        return []
    if prospect.against:
        raise CommandError(f"Tag {prospect.id_tag} stays as it is: {' '.join(prospect.against)}")
    return [prospect]


def _carry_out(config: Config, ready: list[Prospect], now: datetime) -> int:
    """One transaction for each tag; what changed since the preview is told and left."""
    from ocpp_billing.charging.pseudonyms import PseudonymError, pseudonymise

    code = DONE
    for prospect in ready:
        try:
            done = pseudonymise(config.steve_source, prospect.tag_id, by=actor(), now=now)
        except PseudonymError as error:
            out(str(error))
            code = FAILED
        else:
            # Never beside the text: what is printed may be kept.
            out(f"{done.pseudonym}: {done.sessions} sessions and {done.texts} texts.")
            if done.sent_whole:
                out(f"Lago was sent the whole tag in {done.sent_whole} usage events: both keep that.")
    return code


def _days(text: str) -> timedelta:
    """A number of days on the command line."""
    if not (text.isascii() and text.isdecimal() and int(text) <= MAX_DAYS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days from 0 to {MAX_DAYS}")
    return timedelta(days=int(text))
