"""``ocpp-billing held``: what is held for which reason, and one order about all that a reason holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing.commands.ground import (
    DONE,
    FAILED,
    LEFT,
    Commands,
    Progress,
    UsageError,
    actor,
    add_range,
    confirmed,
    ledger,
    note,
    out,
    range_of,
)
from ocpp_billing.energy import say_kwh

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from django.db.models import QuerySet

    from ocpp_billing.billing.bulk import OrderOutcome
    from ocpp_billing.charging.models import ChargingSession
    from ocpp_billing.config import Config

# So many are shown before the question, and so many refusals after it.
SHOWN = 10
# So many are ordered before it is said how far it has come.
ORDERED_AT_ONCE = 1_000

# What accepting does beyond its name.
_ACCEPTING = {
    "known_by_another_source": "What another STEVE_SOURCE has ready and never sent is taken from it and held "
    "there, also while this one sends nothing yet; what it has sent by then stays held here.",
    "billed_by_another_source": "WARNING: another STEVE_SOURCE has sent them to Lago already. The customers "
    "pay twice unless the first bill was credited.",
    "late_period": "They are billed in the customers' current billing period.",
}
_EXCLUDING = {
    "known_by_another_source": "The other STEVE_SOURCE bills what it has ready.",
    "billed_by_another_source": "They stay billed by the other STEVE_SOURCE.",
}


def add_commands(commands: Commands) -> None:
    """Add ``held``, ``held accept`` and ``held exclude``."""
    added = commands.add("held", held, "list for which reasons sessions are held, and how many")
    acts = added.add_subparsers(metavar="ACT")
    for name, function, says in (
        ("accept", held_accept, "bill all that are held for a reason, after a preview"),
        ("exclude", held_exclude, "never bill those that are held for a reason, after a preview"),
    ):
        act = acts.add_parser(
            name, help=says, description="The order is about each as it stands in the preview."
        )
        act.add_argument("--reason", required=True, metavar="CODE", help="as ocpp-billing held lists it")
        add_range(act, "only those that stopped {}")
        act.add_argument("--note", required=True, help="why, for the audit")
        act.add_argument("--yes", action="store_true", help="do not ask")
        act.set_defaults(function=function)


def held(config: Config, _args: argparse.Namespace) -> int:
    """List for which reasons sessions are held."""
    with ledger(config):
        from ocpp_billing.billing.balance import read_balance
        from ocpp_billing.portal.wording import of_reason

        parts = read_balance(config.steve_source).parts
        reasons = {reason: amount for (state, reason), amount in parts.items() if state == "held"}
        for reason, amount in sorted(reasons.items(), key=lambda each: -abs(each[1].energy_wh)):
            named = of_reason("held", reason).label
            out(f"{reason} ({named}): {amount.sessions} sessions, {say_kwh(amount.energy_wh)} kWh")
        if not reasons:
            out("Nothing is held.")
    return DONE


def held_accept(config: Config, args: argparse.Namespace) -> int:
    """Bill all that are held for a reason."""
    with ledger(config):
        from ocpp_billing.billing import review

        if args.reason not in review.ACCEPTABLE:
            raise UsageError(
                f"What is held as {args.reason} cannot simply be accepted. These can: "
                f"{', '.join(sorted(review.ACCEPTABLE))}."
            )
        return _order(
            config,
            args,
            "Bill",
            lambda session_id: review.accept(session_id, note=args.note, by=actor()),
            _ACCEPTING.get(args.reason, "What another rule speaks against stays held for that one."),
        )


def held_exclude(config: Config, args: argparse.Namespace) -> int:
    """Never bill all that are held for a reason."""
    with ledger(config):
        from ocpp_billing.billing import review

        return _order(
            config,
            args,
            "Never bill",
            lambda session_id: review.exclude(session_id, note=args.note, by=actor()),
            _EXCLUDING.get(args.reason, "What Lago already has of them stays there."),
        )


def _order(
    config: Config, args: argparse.Namespace, verb: str, order: Callable[[int], None], means: str
) -> int:
    from ocpp_billing.charging.models import ChargingSession

    held = ChargingSession.objects.filter(source=config.steve_source, state="held", reason=args.reason)
    return order_many(
        between(config, args, held),
        verb,
        order,
        says=_decided,
        means=means,
        none=f"No session is held as {args.reason} there. See: ocpp-billing held",
        yes=args.yes,
    )


def _decided(session: ChargingSession) -> str:
    return session.decisions.order_by("-id").values_list("says", flat=True).first() or ""


def order_many(
    meant: QuerySet[ChargingSession],
    verb: str,
    order: Callable[[int], None],
    *,
    says: Callable[[ChargingSession], str],
    means: str,
    none: str,
    yes: bool,
) -> int:
    """Show sessions, ask, and give one order about each as it stood when it was shown.

    Args:
        meant: the sessions.
        verb: begins the question.
        order: of :mod:`billing.review`, by our number of a session.
        says: why one waits.
        means: what ordering it does.
        none: what is said when there are none.
        yes: do not ask.

    Returns:
        The exit code.
    """
    from ocpp_billing.billing.bulk import at_stake_wh, standing

    seen: dict[int, str] = {}
    energy_wh = 0
    for session in meant.iterator():
        if len(seen) < SHOWN:
            out(f"session {session.steve_id}, {say_kwh(at_stake_wh(session))} kWh: {says(session)}")
        seen[session.pk] = standing(session)
        energy_wh += at_stake_wh(session)
    if not seen:
        out(none)
        return DONE
    if len(seen) > SHOWN:
        out(f"... and {len(seen) - SHOWN} more")
    out(f"{len(seen)} sessions, {say_kwh(energy_wh)} kWh. {means}")
    if not yes and not confirmed(f"{verb} {len(seen)} sessions?"):
        note("Nothing was changed.")
        return FAILED
    outcomes = _order_all(seen, order)
    refused = [outcome for outcome in outcomes if outcome.refused is not None]
    for outcome in refused[:SHOWN]:
        note(str(outcome.refused))
    if len(refused) > SHOWN:
        note(f"... and {len(refused) - SHOWN} more were refused")
    out(f"Ordered for {len(outcomes) - len(refused)} sessions; the next synchronization carries it out.")
    return LEFT if refused else DONE


def between(
    config: Config, args: argparse.Namespace, sessions: QuerySet[ChargingSession]
) -> QuerySet[ChargingSession]:
    """Those that stopped within the range that is asked for, in the order in which they are locked."""
    from django.db.models.functions import Coalesce

    meant = sessions.order_by("pk")
    begin, end = range_of(args, config)
    if begin is None and end is None:
        return meant
    # Of a session that a person ended, the reading says when.
    ended = meant.annotate(ended_at=Coalesce("reading_stopped_at", "stopped_at"))
    if begin is not None:
        ended = ended.filter(ended_at__gte=begin)
    if end is not None:
        ended = ended.filter(ended_at__lt=end)
    return ended


def _order_all(seen: dict[int, str], order: Callable[[int], None]) -> list[OrderOutcome]:
    """Give the order about each, saying now and then how far it has come."""
    from ocpp_billing.billing.bulk import order_each

    progress = Progress()
    ids = sorted(seen)
    outcomes: list[OrderOutcome] = []
    for first in range(0, len(ids), ORDERED_AT_ONCE):
        outcomes += order_each({pk: seen[pk] for pk in ids[first : first + ORDERED_AT_ONCE]}, order)
        progress(f"{len(outcomes)} of {len(ids)} sessions")
    return outcomes
