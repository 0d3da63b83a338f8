"""What a session's page calls things: who stopped it, kinds of events, and Lago's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django.utils.functional import Promise

STOPPED_BY: dict[str, str | Promise] = {
    "station": gettext_lazy("By the charge box"),
    "manual": gettext_lazy("By hand, in StEvE"),
    "": gettext_lazy("By whom, this StEvE does not say"),
}

KINDS: dict[str, str | Promise] = {
    "original": gettext_lazy("Usage event"),
    "correction": gettext_lazy("Correction"),
    "move": gettext_lazy("Moved to another payer"),
    "credit": gettext_lazy("Refund by credit note"),
}

# Outcomes that deliver.py and confirm.py write beside Lago's words.
_OUTCOMES: dict[str, str | Promise] = {
    "accepted": gettext_lazy("Lago took it"),
    "read back": gettext_lazy("Lago holds it with the same payload; it was read back"),
    "adopted": gettext_lazy("Lago held it; the ledger learned of it from there"),
    "rejected": gettext_lazy("Lago refused it"),
    "conflict": gettext_lazy("Lago holds something else under this id"),
    "vanished": gettext_lazy("Lago took it and did not show it; it is sent again"),
    "not named": gettext_lazy("Lago refused a batch without naming it; it is sent by itself"),
    "not found": gettext_lazy("Whether Lago took it is not known, and Lago does not show it"),
    "taken, not found": gettext_lazy("Lago says that the id is taken and does not show the event"),
    "given up": gettext_lazy("Lago does not bill it"),
    "unknown": gettext_lazy("Whether Lago took it is not known; it is read back, then sent again"),
}


def answer_says(answer: Mapping[str, Any] | None) -> str | None:
    """Lago's last words about an event, or ours about what happened; None = nothing was heard yet."""
    if not answer:
        return None
    outcome = str(answer.get("outcome", ""))
    words = str(_OUTCOMES.get(outcome, outcome))
    says, status = answer.get("says"), answer.get("status")
    text = f"{words}: {says}" if words and says else words or str(says or "")
    return _("%(says)s (status %(status)s)") % {"says": text, "status": status} if status else text
