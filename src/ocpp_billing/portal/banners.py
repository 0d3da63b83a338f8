"""What stands across the top of every page when money is not flowing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ocpp_billing.accounts.models import Role
from ocpp_billing.alerts.conditions import CONTRACT_BROKEN, TITLES, WORKER_GONE
from ocpp_billing.billing.control import BY_ITSELF, KEY_REFUSED, ends_with

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from django.utils.functional import Promise

    from ocpp_billing.portal.queries import Status
    from ocpp_billing.sync.models import Alert


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
    act_says: str | Promise = ""
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
                **_what_ends(status),
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
    return shown + [_of_alert(alert) for alert in status.alerts if _needs_banner(alert, status)]


def _what_ends(status: Status) -> dict[str, Any]:
    """What to do about a pause, and the button or command that helps."""
    match ends_with(status.paused_by, status.pause_reason):
        case "key":
            return {
                "do": _("With a valid key it goes on by itself, in the next run."),
                "act": "portal:setup",
                "act_says": _("Check Lago"),
                "needs": Role.OPERATOR,
            }
        case "adopt":
            return {
                "do": _("It goes on by itself when that has ended. If it was broken off, run"),
                "command": "ocpp-billing adopt",
            }
        case _:
            return {
                "do": _("When the cause is settled, an admin resumes it."),
                "act": "portal:resume",
                "act_says": _("Resume"),
            }


# Alerts of what keeps money from flowing: icon, the page that helps, and what stands on its button.
STOP_MONEY: dict[str, tuple[str, str, str | Promise]] = {
    "steve_failing": ("plug-off", "portal:setup", gettext_lazy("Check StEvE")),
    "steve_unauthorised": ("key", "portal:setup", gettext_lazy("Check StEvE")),
    "lago_failing": ("plug-off", "portal:setup", gettext_lazy("Check Lago")),
    "lago_unauthorised": ("key", "portal:setup", gettext_lazy("Check Lago")),
    "sync_failing": ("alert-triangle", "portal:runs", gettext_lazy("Look at the runs")),
    "balance_unexplained": ("alert-triangle", "portal:pause", gettext_lazy("Pause")),
    "disk_low": ("database", "", ""),
}
# They say what runs found, and nobody runs.
_OF_RUNS = {"steve_failing", "steve_unauthorised", "lago_failing", "lago_unauthorised", "sync_failing"}
_IN_OTHER_BANNERS = {CONTRACT_BROKEN, WORKER_GONE, "delivery_paused"}
# What stands on a page, with the sessions that it is about.
_SHOWN_ON = dict.fromkeys(("sessions_waiting", "events_rejected", "not_confirmed"), "portal:attention")


def _needs_banner(alert: Alert, status: Status) -> bool:
    """Whether it stops money, and no other banner says so already."""
    if alert.condition not in STOP_MONEY or (alert.condition in _OF_RUNS and not status.worker_alive):
        return False
    return alert.condition != "lago_unauthorised" or not status.pause_reason.startswith(KEY_REFUSED)


def _of_alert(alert: Alert) -> Banner:
    icon, act, act_says = STOP_MONEY[alert.condition]
    needs = Role.ADMIN if act == "portal:pause" else Role.OPERATOR
    return Banner(
        "danger",
        icon,
        TITLES[alert.condition],
        alert.opened_at,
        f"{alert.says.rstrip('.')}.",
        alert.do,
        act=act,
        act_says=act_says,
        needs=needs,
    )


@dataclass(frozen=True, slots=True)
class AlertLine:
    """An alert in a list: what, since when, what to do; ``page`` is the name of the page that shows it."""

    title: str
    since: datetime
    says: str
    do: str
    page: str


def alert_lines(alerts: Iterable[Alert], page: str) -> list[AlertLine]:
    """What people are alerted of, and neither a banner nor this page shows, for a list.

    Args:
        alerts: what is open.
        page: name of the page that lists them.
    """
    return [
        AlertLine(
            TITLES.get(alert.condition, alert.condition),
            alert.opened_at,
            alert.says,
            alert.do,
            _SHOWN_ON.get(alert.condition, ""),
        )
        for alert in alerts
        if alert.condition not in STOP_MONEY
        and alert.condition not in _IN_OTHER_BANNERS
        and _SHOWN_ON.get(alert.condition) != page
    ]
