"""``ocpp-billing retry``: send again what Lago rejected, once the cause is mended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing.commands.ground import Commands, actor, add_range, ledger
from ocpp_billing.commands.held import between, order_many

if TYPE_CHECKING:
    import argparse

    from ocpp_billing.charging.models import ChargingSession
    from ocpp_billing.config import Config


def add_commands(commands: Commands) -> None:
    """Add ``retry``."""
    added = commands.add(
        "retry",
        retry,
        "send again what Lago rejected, after a preview",
        "Mend the cause first. Each keeps its id, so nothing is billed twice.",
    )
    added.add_argument("--reason", metavar="CODE", help="only what Lago rejected for this")
    add_range(added, "only sessions that stopped {}")
    added.add_argument("--note", default="", help="what was mended, for the audit")
    added.add_argument("--yes", action="store_true", help="do not ask")


def retry(config: Config, args: argparse.Namespace) -> int:
    """Send again what Lago rejected."""
    with ledger(config):
        from ocpp_billing.billing import review
        from ocpp_billing.billing.models import UsageEvent
        from ocpp_billing.charging.models import ChargingSession

        rejected = UsageEvent.objects.filter(source=config.steve_source, state="rejected")
        if args.reason is not None:
            rejected = rejected.filter(reason=args.reason)
        meant = ChargingSession.objects.filter(pk__in=rejected.values("session_id"))
        return order_many(
            between(config, args, meant),
            "Send again the usage events of",
            lambda session_id: review.retry_session(session_id, note=args.note, by=actor()),
            says=_lagos_words,
            means="They are sent with the next synchronization, under the ids that they have.",
            none="Lago rejected nothing there.",
            yes=args.yes,
        )


def _lagos_words(session: ChargingSession) -> str:
    """Why Lago rejected the latest of a session's events."""
    from ocpp_billing.portal.event_words import answer_says

    event = session.events.filter(state="rejected").order_by("-n").first()
    return "" if event is None else answer_says(event.answer) or event.reason or ""
