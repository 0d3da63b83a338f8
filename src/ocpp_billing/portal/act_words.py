"""What the acts of a person are called, what each does to the money, and what it says when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ocpp_billing.billing.offers import Act
from ocpp_billing.portal.format import kwh, stamp

if TYPE_CHECKING:
    from datetime import datetime

    from django.utils.functional import Promise

    from ocpp_billing.billing.closing import ClosePreview


@dataclass(frozen=True, slots=True)
class ActWords:
    """An act on the screen: the word on its button and its shape."""

    label: str | Promise
    icon: str


_ACTS: dict[Act, ActWords] = {
    Act.MAP: ActWords(gettext_lazy("Map the tag"), "tags"),
    Act.ACKNOWLEDGE: ActWords(gettext_lazy("It is the same tag"), "id-badge-2"),
    Act.ACCEPT: ActWords(gettext_lazy("Accept"), "check"),
    Act.CLOSE: ActWords(gettext_lazy("Close in StEvE"), "player-stop"),
    Act.READING: ActWords(gettext_lazy("Enter a reading"), "gauge"),
    Act.RETRY: ActWords(gettext_lazy("Send again"), "refresh"),
    Act.CREDIT: ActWords(gettext_lazy("Mark as credited"), "receipt-refund"),
    Act.ASSIGN: ActWords(gettext_lazy("Assign to a customer"), "building"),
    Act.EXCLUDE: ActWords(gettext_lazy("Exclude"), "circle-minus"),
}
# Where an act means something of its own for a reason.
_FOR_REASON: dict[tuple[Act, str], ActWords] = {
    (Act.ACCEPT, "late_period"): ActWords(gettext_lazy("Bill in the current period"), "check"),
    (Act.ACCEPT, "known_by_another_source"): ActWords(gettext_lazy("Bill here"), "check"),
    (Act.ACCEPT, "billed_by_another_source"): ActWords(gettext_lazy("Bill a second time"), "alert-triangle"),
    (Act.EXCLUDE, "billed_by_another_source"): ActWords(
        gettext_lazy("Leave as billed there"), "circle-minus"
    ),
    (Act.ACCEPT, "changed_after_billing"): ActWords(gettext_lazy("Bill the correction"), "check"),
    (Act.EXCLUDE, "changed_after_billing"): ActWords(gettext_lazy("Leave as billed"), "circle-minus"),
    (Act.EXCLUDE, "conflict_in_lago"): ActWords(gettext_lazy("Mark as settled by hand"), "circle-minus"),
    (Act.EXCLUDE, "refund_by_credit_note"): ActWords(gettext_lazy("Do not refund"), "circle-minus"),
}


def act_words(act: Act, reason: str | None) -> ActWords:
    """The word and the shape of an act about sessions of a reason."""
    return _FOR_REASON.get((act, reason or ""), _ACTS[act])


_WILL_DO: dict[Act, str | Promise] = {
    Act.ACCEPT: gettext_lazy(
        "Bill %(sessions)s, %(energy)s kWh, although this rule speaks against it. What another rule speaks "
        "against stays held for that one."
    ),
    Act.ACKNOWLEDGE: gettext_lazy(
        "Say that the tag still is the same one: all its sessions are decided and billed again."
    ),
    Act.ASSIGN: gettext_lazy(
        "Bill %(sessions)s, %(energy)s kWh, to one customer, whatever the mapping of the tag says."
    ),
    Act.CLOSE: gettext_lazy("Close %(sessions)s in StEvE's books. This cannot be undone."),
    Act.CREDIT: gettext_lazy(
        "Say that %(refund)s kWh of %(sessions)s were credited in Lago by a credit note. Nothing is sent; "
        "the credit is counted from now on."
    ),
    Act.EXCLUDE: gettext_lazy("Exclude %(sessions)s: %(energy)s kWh will not be billed."),
    Act.READING: gettext_lazy(
        "Say what the meter showed at the end of %(sessions)s; it is then decided and billed."
    ),
    Act.RETRY: gettext_lazy(
        "Send %(sessions)s, %(energy)s kWh, to Lago once more. Mend the cause there first."
    ),
}
_WILL_DO_FOR_REASON: dict[tuple[Act, str], str | Promise] = {
    (Act.EXCLUDE, "conflict_in_lago"): gettext_lazy(
        "Say that %(sessions)s, %(energy)s kWh, was put right in Lago by hand. Nothing more is sent for it; "
        "this cannot be undone."
    ),
    (Act.ACCEPT, "known_by_another_source"): gettext_lazy(
        "Bill %(sessions)s, %(energy)s kWh, by this STEVE_SOURCE. What the other one has ready and never "
        "sent is taken from it and held there, also while this one is in shadow mode or paused and sends "
        "nothing yet. What it has sent by then is not billed here: it stays held."
    ),
    (Act.EXCLUDE, "known_by_another_source"): gettext_lazy(
        "Never bill %(sessions)s, %(energy)s kWh, by this STEVE_SOURCE. The other one bills what it has "
        "ready."
    ),
    (Act.ACCEPT, "billed_by_another_source"): gettext_lazy(
        "Bill %(sessions)s, %(energy)s kWh, a second time: another STEVE_SOURCE has sent them to Lago "
        "already, and Lago takes nothing back. The customer pays twice unless the first bill was credited."
    ),
    (Act.EXCLUDE, "billed_by_another_source"): gettext_lazy(
        "Never bill %(sessions)s, %(energy)s kWh, by this STEVE_SOURCE: they stay billed by the other one."
    ),
    (Act.ACCEPT, "late_period"): gettext_lazy(
        "Bill %(sessions)s, %(energy)s kWh, in the customer's current billing period; the original times go "
        "along."
    ),
    (Act.CREDIT, "charged_twice"): gettext_lazy(
        "Say that all fees but one of %(sessions)s were credited in Lago by a credit note. Nothing is sent; "
        "%(energy)s kWh count as confirmed from now on."
    ),
    (Act.ACCEPT, "changed_after_billing"): gettext_lazy(
        "Send the difference of %(sessions)s, %(energy)s kWh, to Lago as a correction."
    ),
    (Act.EXCLUDE, "changed_after_billing"): gettext_lazy(
        "Leave %(sessions)s as billed: the difference of %(energy)s kWh will not be billed."
    ),
    (Act.EXCLUDE, "refund_by_credit_note"): gettext_lazy(
        "Refund nothing of %(sessions)s: %(refund)s kWh too much stay billed."
    ),
}


def is_grave(act: Act, reason: str | None) -> bool:
    """Whether an act costs money or cannot be undone, so that its button is red and not the first."""
    return act in {Act.EXCLUDE, Act.CLOSE} or (act, reason) == (Act.ACCEPT, "billed_by_another_source")


_WAS_DONE: dict[Act, str | Promise] = {
    Act.ACCEPT: gettext_lazy("%(session)s is accepted."),
    Act.ACKNOWLEDGE: gettext_lazy("The tag of %(session)s is acknowledged."),
    Act.ASSIGN: gettext_lazy("%(session)s is assigned."),
    Act.CLOSE: gettext_lazy("%(session)s is closed in StEvE."),
    Act.CREDIT: gettext_lazy("The refund of %(session)s is marked as credited."),
    Act.EXCLUDE: gettext_lazy("%(session)s is excluded."),
    Act.READING: gettext_lazy("The reading of %(session)s is entered."),
    Act.RETRY: gettext_lazy("%(session)s is queued again."),
}


# Of sessions that never stopped no energy is known; what their meters last said is lost with them.
_EXCLUDE_STUCK = gettext_lazy(
    "Exclude %(sessions)s: what the meter last showed, ≈\xa0%(evident)s kWh, will not be billed."
)
_EXCLUDE_UNKNOWN = gettext_lazy("Exclude %(sessions)s: whatever was delivered will not be billed.")


def will_do(
    act: Act, reason: str | None, sessions: str, energy_wh: int, evident_wh: int | None = None
) -> str:
    """What an act would do, as a sentence with its numbers.

    Args:
        act: which.
        reason: for which the sessions are held.
        sessions: which, such as ``session 4711`` or ``12 sessions``.
        energy_wh: what is at stake of them.
        evident_wh: of stuck sessions, what their meters last said instead; None = they are not stuck.
    """
    text = _WILL_DO_FOR_REASON.get((act, reason or ""), _WILL_DO[act])
    if act is Act.EXCLUDE and evident_wh is not None:
        text = _EXCLUDE_STUCK if evident_wh else _EXCLUDE_UNKNOWN
    given = {"sessions": sessions, "energy": kwh(energy_wh), "refund": kwh(-energy_wh)}
    return str(text) % (given | {"evident": kwh(evident_wh or 0)})


_CLOSE_SOURCES: dict[str, str | Promise] = {
    "meter_value": gettext_lazy("the last meter value"),
    "next_start": gettext_lazy("the start of the next session on the connector"),
    "none": gettext_lazy("for want of anything better its own start"),
}


def close_words(preview: ClosePreview, now: datetime) -> list[str]:
    """What closing a session in StEvE would make of it, in sentences."""
    given = {
        "id": preview.steve_id,
        "register": kwh(preview.stop_wh),
        "at": stamp(preview.stopped_at, now),
        "source": _CLOSE_SOURCES[preview.source],
        "energy": kwh(preview.energy_wh),
    }
    says = [
        _(
            "StEvE would end session %(id)s with a meter of %(register)s kWh, %(at)s: that is %(source)s. It "
            "then delivered %(energy)s kWh."
        )
        % given
    ]
    if preview.or_stop_wh is not None:
        says.append(
            _("If StEvE is older than 3.14, it would write %(other)s kWh instead.")
            % {"other": kwh(preview.or_stop_wh)}
        )
    if preview.agrees:
        says.append(_("The evidence agrees, so it is billed when no rule speaks against it."))
    elif preview.finding.stop_wh is None:
        says.append(_("Nothing shows what was delivered, so it would be held until you accept it."))
    else:
        says.append(
            _("The evidence says %(evidence)s kWh, so it would be held until you accept it.")
            % {"evidence": kwh(preview.finding.stop_wh)}
        )
    return says


def was_done(act: Act, session: str) -> str:
    """What was done about one session, as a sentence."""
    return str(_WAS_DONE[act]) % {"session": session}


_WAS_ORDERED: dict[str, str | Promise] = {
    "accept": gettext_lazy("Accepted: %(sessions)s, %(energy)s kWh."),
    "exclude": gettext_lazy("Excluded: %(sessions)s, %(energy)s kWh."),
    "assign": gettext_lazy("Assigned: %(sessions)s, %(energy)s kWh."),
    "credit": gettext_lazy("Marked as credited: refunds of %(sessions)s."),
    "retry": gettext_lazy("Queued again: %(sessions)s, %(energy)s kWh."),
}


def was_ordered(kind: str, sessions: str, energy: str) -> str:
    """What was ordered about some sessions, in a sentence; ``kind`` is that of the ruling."""
    return str(_WAS_ORDERED[kind]) % {"sessions": sessions, "energy": energy}
