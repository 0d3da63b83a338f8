"""What each state and each reason is called, what it means for the money, and what to do about it.

The codes are those of the ledger (``SessionState``, and the rules of :mod:`ocpp_billing.billing`); the
words are the portal's. A code without words is a mistake that the tests find, but a page never fails for
it: :func:`of_reason` falls back to the code itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django.utils.functional import Promise


@dataclass(frozen=True, slots=True)
class StateWords:
    """A state on the screen: never colour alone, but a word and a shape (``icon``) each."""

    code: str
    label: str | Promise
    icon: str
    means: str | Promise


@dataclass(frozen=True, slots=True)
class ReasonWords:
    """A reason on the screen."""

    code: str
    label: str | Promise
    means: str | Promise
    do: str | Promise


# From money that is safe to money that never comes; the order of the bar, the table and the chart.
STATES: dict[str, StateWords] = {
    words.code: words
    for words in (
        StateWords("confirmed", _("Confirmed"), "circle-check", _("Lago counts it and will invoice it")),
        StateWords("accepted", _("Accepted"), "checks", _("Lago has it; its count is not checked yet")),
        StateWords("queued", _("Queued"), "hourglass", _("Ready to be sent to Lago")),
        StateWords("held", _("Held"), "hand-stop", _("Not billed until its cause is resolved")),
        StateWords("stuck", _("Stuck"), "alert-triangle", _("Never stopped in StEvE; energy unknown")),
        StateWords("rejected", _("Rejected"), "circle-x", _("Lago refused it; not billed")),
        StateWords("excluded", _("Excluded"), "circle-minus", _("Deliberately not billed")),
        StateWords("open", _("Open"), "plug-connected", _("Still charging; energy not known yet")),
    )
}

REASONS: dict[str, ReasonWords] = {
    words.code: words
    for words in (
        # -- holds, in the order of the rules ---------------------------------------------------------
        ReasonWords(
            "identity_conflict",
            _("Identity changed"),
            _("StEvE now shows another tag or another session under a known number: who pays is unclear."),
            _("Check whether StEvE was restored or migrated; then “It is the same tag”, or decide each."),
        ),
        ReasonWords(
            "clock_skew",
            _("Wrong clock"),
            _("The charge box's times cannot be right, so the billing period would be a guess. Not billed."),
            _("Set the charge box's clock. Then accept the session as it is, or exclude it with a note."),
        ),
        ReasonWords(
            "negative_energy",
            _("Negative energy"),
            _("The meter read less at the end than at the start. Counted as 0 kWh; not billed."),
            _("Compare with the meter (it may have been replaced), then enter a reading or exclude it."),
        ),
        ReasonWords(
            "implausible",
            _("Implausible"),
            _("More energy, power or time than a real session can have. Not billed."),
            _("Compare with the charge box's meter. Accept it if it is real, or exclude it with a note."),
        ),
        ReasonWords(
            "register_overlap",
            _("Overlapping meter readings"),
            _("Another session on the same connector claims the same energy: one would be billed twice."),
            _("Look at both sessions and keep the right one; exclude the other with a note."),
        ),
        ReasonWords(
            "manual_stop_without_evidence",
            _("Stopped by hand"),
            _("Somebody closed it in StEvE, and no meter value proves the energy. Not billed."),
            _("Enter the reading of the meter, or exclude it with a note."),
        ),
        ReasonWords(
            "known_by_another_source",
            _("Known to another source"),
            _("Another STEVE_SOURCE in this ledger has the very same session, and may bill it, too."),
            _("“Bill here” takes it over; or put the old name back, or exclude it with a note."),
        ),
        ReasonWords(
            "billed_by_another_source",
            _("Billed by another source"),
            _("Another STEVE_SOURCE in this ledger has sent the very same session to Lago already."),
            _("“Leave as billed there”. If STEVE_SOURCE was changed by mistake, put the old name back."),
        ),
        ReasonWords(
            "unmapped_tag",
            _("Tag without a customer"),
            _("Nobody is invoiced for this energy."),
            _("Map the tag to a Lago customer; its sessions are then billed by themselves."),
        ),
        ReasonWords(
            "mapping_inactive",
            _("Mapping switched off"),
            _("The tag's mapping was inactive when the session started. Not billed."),
            _("Switch the mapping on for that time, or exclude the sessions with a note."),
        ),
        ReasonWords(
            "no_subscription",
            _("No subscription"),
            _("The customer had no subscription in Lago at that time that could carry the energy."),
            _("Create the subscription in Lago, or map the tag to the right one."),
        ),
        ReasonWords(
            "ambiguous_subscription",
            _("Several subscriptions"),
            _("The customer has more than one subscription that would charge it; choosing would be a guess."),
            _("Name the subscription in the tag's mapping."),
        ),
        ReasonWords(
            "metric_not_charged",
            _("Plan does not charge it"),
            _("Lago would take the energy and never invoice it: the plan has no charge for the metric."),
            _("Add the charge to the plan in Lago; the sessions are then billed by themselves."),
        ),
        ReasonWords(
            "late_period",
            _("Period already closed"),
            _("Its billing period is invoiced already; Lago would not bill it any more."),
            _("“Bill in the current period”, or bill it by hand and exclude it with a note."),
        ),
        ReasonWords(
            "changed_after_billing",
            _("Changed after billing"),
            _("StEvE changed a session that was billed, by more than is corrected without asking."),
            _("Compare both versions, then “Bill the correction” or “Leave as billed”."),
        ),
        ReasonWords(
            "refund_by_credit_note",
            _("Refund by credit note"),
            _("Too much was billed, and Lago cannot take it back by a usage event."),
            _("Issue a credit note in Lago for the energy shown, then “Mark as credited”."),
        ),
        ReasonWords(
            "conflict_in_lago",
            _("Conflict in Lago"),
            _("Lago holds an event under our number that says something else: which one counts is unclear."),
            _("Compare both, correct the difference in Lago by hand, then “Mark as settled by hand”."),
        ),
        ReasonWords(
            "charged_twice",
            _("Charged twice"),
            _("Lago made more than one fee of one usage event: the customer pays too much."),
            _("Write a credit note in Lago over all its fees but one, then “Mark as credited”."),
        ),
        ReasonWords(
            "undecided",
            _("Not decided yet"),
            _("Read from StEvE, but the rules have not looked at it yet. Nothing is lost."),
            _("Nothing: the next run decides. If it stays, look at the last run's errors."),
        ),
        # -- exclusions -------------------------------------------------------------------------------
        ReasonWords(
            "zero_energy",
            _("No energy"),
            _("The charge box itself reported a session without energy: there is nothing to bill."),
            _("Nothing."),
        ),
        ReasonWords(
            "below_minimum",
            _("Below the minimum"),
            _("Less energy than MIN_SESSION_KWH: deliberately not billed."),
            _("Nothing; lower MIN_SESSION_KWH if such sessions shall be billed."),
        ),
        ReasonWords(
            "before_go_live",
            _("Before go-live"),
            _("It stopped before billing began: deliberately not billed."),
            _("Nothing."),
        ),
        ReasonWords(
            "by_operator",
            _("Excluded by a person"),
            _("Somebody decided, with a note, that it is not billed."),
            _("Nothing; the note says why."),
        ),
        ReasonWords(
            "credited",
            _("Credited by hand"),
            _("Too much was billed, and a credit note in Lago gave it back."),
            _("Nothing; the note names the credit note."),
        ),
    )
}

# What stands in the place of a reason where a state needs attention and has none of its own.
STUCK = ReasonWords(
    "stuck",
    _("Stuck"),
    _("StEvE keeps the session open for ever; its energy is not known and not billed."),
    _("Look at the evidence, then close it in StEvE, enter a reading, or exclude it with a note."),
)
REJECTED = ReasonWords(
    "rejected",
    _("Rejected by Lago"),
    _("Lago refused the usage event, so this energy is not invoiced."),
    _("Read Lago's answer, mend its cause there, then “Send again”."),
)


def of_reason(state: str, reason: str | None) -> ReasonWords:
    """The words for why something is in a state; never fails."""
    if reason in REASONS:
        return REASONS[reason]
    if state == "rejected":
        # Lago's own code, such as transaction_id_not_unique, tells an integrator more than our words.
        label = REJECTED.label if not reason else f"{REJECTED.label}: {reason}"
        return ReasonWords(reason or "rejected", label, REJECTED.means, REJECTED.do)
    if state == "stuck":
        return STUCK
    words = STATES[state]
    return ReasonWords(reason or state, reason or words.label, words.means, _("Look at the session."))
