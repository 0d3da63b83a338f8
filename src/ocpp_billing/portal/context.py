"""What every page of the portal needs: theme, menu, version; freshness and banners when it shows them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.urls import reverse
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy as _

import ocpp_billing
from ocpp_billing import clock
from ocpp_billing.accounts.models import Role, User
from ocpp_billing.portal.banners import banners
from ocpp_billing.portal.inbox import count_waiting
from ocpp_billing.portal.queries import read_status
from ocpp_billing.portal.theme import chosen_theme

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest
    from django.utils.functional import Promise

    from ocpp_billing.portal.queries import Status


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """One entry of the left bar; for people with at least the role ``needs``.

    ``count`` is one cheap query: how many things of a source wait behind it.
    """

    label: str | Promise
    icon: str
    url_name: str
    needs: Role = Role.VIEWER
    count: Callable[[str], int] | None = None


# By group; the first has no heading.
MENU: dict[str | Promise, list[MenuEntry]] = {
    "": [
        MenuEntry(_("Dashboard"), "layout-dashboard", "portal:dashboard"),
        MenuEntry(_("Needs attention"), "inbox", "portal:attention", count=count_waiting),
        MenuEntry(_("Billing events"), "receipt-2", "portal:events"),
        MenuEntry(_("Mappings"), "tags", "portal:mappings"),
        MenuEntry(_("Sync"), "refresh", "portal:runs"),
    ],
    _("Settings"): [
        MenuEntry(_("Set-up"), "list-check", "portal:setup"),
        MenuEntry(_("Users"), "users", "portal:users", Role.ADMIN),
        MenuEntry(_("Tokens"), "key", "portal:tokens"),
        MenuEntry(_("Audit"), "history", "portal:audit", Role.ADMIN),
    ],
}


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """A menu entry for one person on one page; ``current`` also on the pages below it."""

    label: str | Promise
    icon: str
    address: str
    current: bool
    counts: bool
    waiting: int


def _menu(request: HttpRequest) -> list[dict[str, Any]]:
    user = request.user
    if not isinstance(user, User):
        return []
    groups = []
    for label, entries in MENU.items():
        shown = []
        for entry in entries:
            if entry.needs.within(Role(user.role)):
                address = reverse(entry.url_name)
                below = address != "/" and request.path.startswith(address.rstrip("/") + "/")
                current = below or request.path == address
                waiting = entry.count(settings.CONFIG.steve_source) if entry.count else 0
                shown.append(
                    ShownEntry(entry.label, entry.icon, address, current, entry.count is not None, waiting)
                )
        if shown:
            groups.append({"label": label, "entries": shown})
    return groups


def portal(request: HttpRequest) -> dict[str, Any]:
    """Context of every template. The database is asked only by templates that show the status."""

    @cache
    def status() -> Status:
        return read_status(settings.CONFIG.steve_source, clock.now())

    return {
        "version": ocpp_billing.__version__,
        "theme": chosen_theme(request),
        "menu": SimpleLazyObject(lambda: _menu(request)),
        "waiting": cache(lambda: count_waiting(settings.CONFIG.steve_source)),
        "zone": settings.TIME_ZONE,
        "status": SimpleLazyObject(status),
        "banners": SimpleLazyObject(lambda: banners(status())),
    }
