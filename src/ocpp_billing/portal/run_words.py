"""What a synchronization run did, in a few words. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from ocpp_billing.portal.format import count

if TYPE_CHECKING:
    from django.utils.functional import Promise

    from ocpp_billing.sync.models import SyncRun


@dataclass(frozen=True, slots=True)
class RunWords:
    """A run for a list: its status as word, icon and tone; what it did; what went wrong."""

    run: SyncRun
    status: str | Promise
    icon: str
    tone: str
    trigger: str | Promise
    # Who asked for it, where the trigger does not say so already.
    by: str
    did: str
    errors: list[str]


STATUS: dict[str, tuple[str | Promise, str, str]] = {
    "requested": (gettext_lazy("Waiting"), "hourglass", "muted"),
    "running": (gettext_lazy("Running"), "refresh", "info"),
    "completed": (gettext_lazy("Completed"), "circle-check", "success"),
    "partial": (gettext_lazy("Partial"), "alert-triangle", "warning"),
    "failed": (gettext_lazy("Failed"), "circle-x", "danger"),
    "interrupted": (gettext_lazy("Interrupted"), "plug-off", "warning"),
}

_TRIGGER: dict[str, str | Promise] = {
    "schedule": gettext_lazy("Schedule"),
    "startup": gettext_lazy("Start-up"),
    "manual": gettext_lazy("By hand"),
    "api": gettext_lazy("API"),
    "command": gettext_lazy("Command line"),
    "recovery": gettext_lazy("Recovery"),
    "watch": gettext_lazy("Watch"),
    "delivery": gettext_lazy("Another attempt"),
    "confirm": gettext_lazy("Confirmation"),
}


# The steps of a run, in their order.
STEPS: dict[str, str | Promise] = {
    "discover": gettext_lazy("Read StEvE"),
    "record": gettext_lazy("Record"),
    "decide": gettext_lazy("Decide"),
    "deliver": gettext_lazy("Deliver to Lago"),
    "confirm": gettext_lazy("Confirm with Lago"),
}


def did(counts: dict[str, int]) -> str:
    """The counts that say something: new sessions first, then what became of them."""
    parts = []
    if new := counts.get("discovered"):
        parts.append(ngettext("+%(n)s session", "+%(n)s sessions", new) % {"n": count(new)})
    words = {
        "changed": _("%(n)s changed"),
        "held": _("%(n)s held"),
        "excluded": _("%(n)s excluded"),
        "queued": _("%(n)s queued"),
        "accepted": _("%(n)s accepted"),
        "confirmed": _("%(n)s confirmed"),
        "rejected": _("%(n)s rejected"),
        "malformed": _("%(n)s unreadable"),
    }
    parts += [text % {"n": count(counts[key])} for key, text in words.items() if counts.get(key)]
    return " · ".join(parts)


def describe(run: SyncRun) -> RunWords:
    """A run in words."""
    status, icon, tone = STATUS[run.status]
    done = did(run.counts)
    if not done and run.status in {"completed", "partial"}:
        done = _("nothing new")
    by = run.requested_by.removeprefix("command line ").strip("()")
    errors = [str(error.get("error", error)) for error in run.errors]
    return RunWords(run, status, icon, tone, _TRIGGER[run.trigger], by, done, errors)
