"""What the acts in the audit log are called, and how before and after are written. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ocpp_billing.portal.format import kwh
from ocpp_billing.portal.wording import REASONS, STATES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django.utils.functional import Promise

# As `record()` is given them: always with an offset.
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+\d\d:\d\d")

# By what they are about; the codes are those of `record()`. A code without words is shown as it is.
ACTIONS: dict[str, str | Promise] = {
    "account.signed_in": gettext_lazy("Signed in"),
    "account.password_changed": gettext_lazy("Changed their password"),
    "account.password_reset": gettext_lazy("Chose a new password by a link"),
    "account.reset_requested": gettext_lazy("A link for a new password was sent"),
    "account.session_ended": gettext_lazy("Signed out another browser"),
    "account.sessions_ended": gettext_lazy("Signed out all other browsers"),
    "account.two_factor_on": gettext_lazy("Switched two-factor sign-in on"),
    "account.two_factor_off": gettext_lazy("Switched two-factor sign-in off"),
    "account.recovery_codes_renewed": gettext_lazy("Made new recovery codes"),
    "account.recovery_code_used": gettext_lazy("Used a recovery code"),
    "user.created": gettext_lazy("Added a person"),
    "user.changed": gettext_lazy("Changed a person"),
    "user.password_reset": gettext_lazy("Set a password anew"),
    "user.reset_link_made": gettext_lazy("Made a link for a new password"),
    "user.sessions_ended": gettext_lazy("Signed a person out everywhere"),
    "user.two_factor_removed": gettext_lazy("Removed two-factor sign-in of a person"),
    "invitation.created": gettext_lazy("Invited somebody"),
    "invitation.renewed": gettext_lazy("Sent an invitation again"),
    "invitation.revoked": gettext_lazy("Revoked an invitation"),
    "invitation.accepted": gettext_lazy("Accepted an invitation"),
    "token.created": gettext_lazy("Made an API token"),
    "token.revoked": gettext_lazy("Revoked an API token"),
    "mapping.create": gettext_lazy("Mapped a tag"),
    "mapping.change": gettext_lazy("Changed a mapping"),
    "mapping.end": gettext_lazy("Ended a mapping"),
    "mapping.switch_on": gettext_lazy("Switched a mapping on"),
    "mapping.switch_off": gettext_lazy("Switched a mapping off"),
    "mapping.note": gettext_lazy("Changed the note of a mapping"),
    "mapping.verify": gettext_lazy("Had a mapping checked against Lago"),
    "mapping.delete": gettext_lazy("Deleted a mapping"),
    "tag.acknowledge": gettext_lazy("Said that a tag is still the same"),
    "tag.pseudonymise": gettext_lazy("Gave a tag that is gone a pseudonym"),
    "session.accept": gettext_lazy("Accepted a session"),
    "session.exclude": gettext_lazy("Excluded a session"),
    "session.assign": gettext_lazy("Assigned a session"),
    "session.revoke": gettext_lazy("Took an order about a session back"),
    "session.credit": gettext_lazy("Settled a refund by credit note"),
    "session.reading": gettext_lazy("Entered a meter reading"),
    "session.move": gettext_lazy("Moved a billed session"),
    "session.close": gettext_lazy("Asked StEvE to close a session"),
    "session.closed": gettext_lazy("Closed a session in StEvE"),
    "event.retry": gettext_lazy("Sent a refused event again"),
    "delivery.go_live": gettext_lazy("Went live"),
    "delivery.pause": gettext_lazy("Paused delivery"),
    "delivery.resume": gettext_lazy("Resumed delivery"),
    "delivery.adopt": gettext_lazy("Adopted events from Lago"),
    "lago.set_up": gettext_lazy("Set up Lago for this product"),
    "sync.requested": gettext_lazy("Asked for a synchronization"),
}

# What can be chosen above the list: how the codes begin.
SUBJECTS: dict[str, str | Promise] = {
    "account.": gettext_lazy("Sign-in and own account"),
    "user.": gettext_lazy("People"),
    "invitation.": gettext_lazy("Invitations"),
    "token.": gettext_lazy("API tokens"),
    "mapping.": gettext_lazy("Mappings"),
    "tag.": gettext_lazy("Tags"),
    "session.": gettext_lazy("Sessions"),
    "event.": gettext_lazy("Usage events"),
    "delivery.": gettext_lazy("Delivery"),
    "lago.": gettext_lazy("Lago"),
    "sync.": gettext_lazy("Synchronization"),
}


# What the facts of an entry are called; one without words is called as in the ledger.
FACTS: dict[str, str | Promise] = {
    "active": gettext_lazy("active"),
    "address": gettext_lazy("address"),
    "adopted": gettext_lazy("adopted events"),
    "answer": gettext_lazy("Lago's answer"),
    "billed": gettext_lazy("billed to"),
    "browser": gettext_lazy("browser"),
    "charged_twice": gettext_lazy("charged twice"),
    "created": gettext_lazy("made in Lago"),
    "credit_note": gettext_lazy("credit note"),
    "credited_wh": gettext_lazy("credited"),
    "customer": gettext_lazy("customer"),
    "customer_external_id": gettext_lazy("customer"),
    "customer_id": gettext_lazy("customer"),
    "email": gettext_lazy("e-mail"),
    "energy_wh": gettext_lazy("energy"),
    "evidence": gettext_lazy("meter evidence"),
    "expected_at": gettext_lazy("expected end"),
    "expected_stop_wh": gettext_lazy("expected meter at the end"),
    "expires_at": gettext_lazy("expires"),
    "id_tag": gettext_lazy("tag"),
    "identity_conflict": gettext_lazy("what spoke against it"),
    "live_from": gettext_lazy("live from"),
    "name": gettext_lazy("name"),
    "note": gettext_lazy("note"),
    "order": gettext_lazy("order"),
    "orphans": gettext_lazy("events without a session"),
    "paused_by": gettext_lazy("paused by"),
    "reading_stop_wh": gettext_lazy("reading at the end"),
    "reading_stopped_at": gettext_lazy("end by the reading"),
    "reason": gettext_lazy("reason"),
    "refund_by_hand": gettext_lazy("to credit by hand"),
    "role": gettext_lazy("role"),
    "seen": gettext_lazy("events in Lago"),
    "sent_whole": gettext_lazy("events that bear the whole tag"),
    "sessions": gettext_lazy("sessions"),
    "state": gettext_lazy("state"),
    "stop_wh": gettext_lazy("meter at the end"),
    "stopped_at": gettext_lazy("stopped"),
    "subscription": gettext_lazy("subscription"),
    "subscription_external_id": gettext_lazy("subscription"),
    "subscription_id": gettext_lazy("subscription"),
    "texts": gettext_lazy("texts changed"),
    "turned_up": gettext_lazy("events that turned up"),
    "user": gettext_lazy("person"),
    "valid_from": gettext_lazy("valid from"),
    "valid_to": gettext_lazy("valid to"),
    "verified": gettext_lazy("known to Lago"),
}

# PostgreSQL keeps the facts of an entry by the length of their names; people read them in this order.
_ORDER = (
    *("id_tag", "email", "name", "role", "customer_id", "customer", "subscription_id", "subscription"),
    *("valid_from", "valid_to", "active", "note"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One fact before and after; ``None`` = it was not, or is no more."""

    name: str
    before: str | None
    after: str | None


def changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[Change]:
    """What differs; what stayed the same is left out, and what was neither there before nor is set now."""
    old, new = dict(before or {}), dict(after or {})
    return [
        Change(str(FACTS.get(name, name)), _written(old, name), _written(new, name))
        for name in sorted(dict.fromkeys([*old, *new]), key=_place)
        if _differs(name, old, new)
    ]


def target_words(target: str) -> str:
    """What an act was about, as it is called on the pages: ``tag TAG-7``, ``session 12``."""
    kind, colon, name = target.partition(":")
    if not colon or " " in kind:
        return target
    return f"{kind} {name.rpartition(':')[2] if kind == 'session' else name}"


def _place(name: str) -> int:
    """Whom it is about first; what has no place of its own keeps its order."""
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _differs(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if name in old and name in new:
        return bool(old[name] != new[name])
    value = old.get(name, new.get(name))
    return value is not None and value != ""


def _of_our_own(name: str, value: Any) -> str | None:
    """Amounts, states and lists as people read them; None = it is none of these."""
    match name, value:
        case str(), int() if name.endswith("_wh"):
            return f"{kwh(value)} kWh"
        case "state", str() if value in STATES:
            return str(STATES[value].label)
        case "reason", str() if value in REASONS:
            return str(REASONS[value].label)
        case "billed", list():
            return "; ".join(f"{customer} ({there}) {kwh(wh)} kWh" for customer, there, wh in value)
        case str(), list() if all(isinstance(each, str) for each in value):
            return ", ".join(value)
    return None


def _written(facts: Mapping[str, Any], name: str) -> str | None:
    if name not in facts:
        return None
    value = facts[name]
    if value is None or value == "":
        return _("none")
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if (of_ours := _of_our_own(name, value)) is not None:
        return of_ours
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and _INSTANT.fullmatch(value):
        return date_format(timezone.localtime(datetime.fromisoformat(value)), "j M Y, H:i")
    return str(value)
