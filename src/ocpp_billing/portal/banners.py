"""What stands across the top of every page when money is not flowing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.utils.translation import gettext as _

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.control import BY_ITSELF

if TYPE_CHECKING:
    from datetime import datetime

    from ocpp_billing.portal.queries import Status


@dataclass(frozen=True, slots=True)
class Banner:
    """What, since when, what to do, and the one button that helps.

    Attributes:
        command: what to type; empty where the button does it.
        act: name of the page that helps; empty where none does.
        act_says: what stands on the button.
        needs: the role for which the button is.
    """

    tone: str
    icon: str
    title: str
    since: datetime | None
    says: str
    do: str
    command: str = ""
    act: str = ""
    act_says: str = ""
    needs: Role = Role.ADMIN


def who_paused(paused_by: str | None) -> str:
    """Who paused delivery, in words."""
    return _("the product itself") if paused_by == BY_ITSELF else paused_by or ""


def banners(status: Status) -> list[Banner]:
    """The banners for a status, gravest first."""
    shown = []
    if status.paused_at is not None:
        who = _("Paused by %(who)s") % {"who": who_paused(status.paused_by)} if status.paused_by else ""
        why = status.pause_reason.rstrip(".")
        shown.append(
            Banner(
                "danger",
                "player-pause",
                _("Delivery is paused"),
                status.paused_at,
                ": ".join(filter(None, (who, why)))
                + ". "
                + _("Sessions are read and decided; nothing is sent to Lago."),
                _("When the cause is settled, an admin resumes it."),
                act="portal:resume",
                act_says=_("Resume"),
            )
        )
    if not status.worker_alive:
        shown.append(
            Banner(
                "danger",
                "heart-broken",
                _("No worker is running") if status.worker_seen_at is None else _("The worker is silent"),
                status.worker_seen_at,
                _("Nothing is read from StEvE and nothing is sent to Lago. Nothing is lost either."),
                _("Look at the worker's log, or start one with"),
                "ocpp-billing worker",
            )
        )
    if status.contract_since is not None:
        shown.append(
            Banner(
                "danger",
                "plug-off",
                _("Lago would not bill everything"),
                status.contract_since,
                status.contract_says,
                status.contract_do,
                act="portal:setup",
                act_says=_("Check Lago"),
                needs=Role.OPERATOR,
            )
        )
    if status.shadow:
        shown.append(
            Banner(
                "info",
                "eye",
                _("Shadow mode"),
                status.known_since,
                _("Everything is read and decided; what would be billed is queued, nothing is sent to Lago."),
                _("When the figures are right, an admin goes live."),
                act="portal:setup",
                act_says=_("Set-up"),
                needs=Role.VIEWER,
            )
        )
    return shown
