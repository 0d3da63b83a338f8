"""Whether anything may be sent: shadow mode, going live, pausing, and the Lago that was pinned."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from django.db import connection, transaction
from django.utils.translation import gettext as _

from ocpp_billing import clock
from ocpp_billing.accounts import audit
from ocpp_billing.billing.balance import Amount
from ocpp_billing.billing.models import DeliveryControl
from ocpp_billing.charging.asking import ask_again
from ocpp_billing.charging.models import Source
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.effects import effect
from ocpp_billing.local_time import day_and_time

if TYPE_CHECKING:
    from datetime import datetime

    from ocpp_billing.accounts.models import User
    from ocpp_billing.config import Config
    from ocpp_billing.lago.wire import Organization

Mode = Literal["live", "shadow", "paused"]
# Who pauses when no person does.
BY_ITSELF = "delivery"
KEY_REFUSED = "Lago refuses LAGO_API_KEY"
# Begins the reason while and because a ledger has to learn what Lago holds; `adopt` settles it.
ADOPTING = "ocpp-billing adopt is running"
UNKNOWN_EVENTS = "Lago holds usage events of this source that this ledger does not know"
# What a restored StEvE may look like at first: that it was restored says more.
STRANGERS = "StEvE shows other sessions under numbers that are known"
BESIDES = " Besides, it stopped by itself: "
# What ends without a person looking: another pause must outlast it.
ENDS_BY_ITSELF = (KEY_REFUSED, ADOPTING)


class ControlError(Exception):
    """Going live, pausing or resuming is not possible as asked; says why and what to do."""


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """Whether usage events are sent.

    Attributes:
        mode: ``live``, ``shadow`` (nothing is sent yet) or ``paused``.
        live_from: sessions that stopped before are excluded; None in shadow mode.
        from_environment: ``BILLING_START`` decides, not a person.
        paused_at: since when it is paused; in shadow mode, too, where that counts as soon as it is live.
        paused_by: by whom; :data:`BY_ITSELF` when it stopped by itself.
        pause_reason: why, and what to do.
    """

    mode: Mode
    live_from: datetime | None
    from_environment: bool
    paused_at: datetime | None = None
    paused_by: str | None = None
    pause_reason: str | None = None


def read_status(config: Config) -> DeliveryStatus:
    """Whether usage events of the configured source are sent."""
    return status_of(config, DeliveryControl.objects.filter(source=config.steve_source).first())


def status_of(config: Config, control: DeliveryControl | None) -> DeliveryStatus:
    """The same of a row that was read already; None = there is none yet."""
    start = config.billing_start_at
    live_from = start or (control.live_from if control else None)
    pause = (control.paused_at, control.paused_by, control.pause_reason) if control else (None, None, None)
    mode: Mode = "shadow" if live_from is None else "live" if pause[0] is None else "paused"
    return DeliveryStatus(mode, live_from, start is not None, *pause)


def apply_billing_start(config: Config) -> str | None:
    """Make the ledger follow ``BILLING_START``: when it is new or another one, sessions are decided anew.

    Returns:
        What changed by it, in words; None when nothing did.
    """
    start = config.billing_start_at
    if start is None:
        return None
    with effect("db commit billing start"), transaction.atomic():
        control = _locked(config.steve_source)
        before = control.live_from
        if before == start:
            return None
        _set_live_from(control, start, "BILLING_START")
        audit.record(
            "delivery.go_live",
            actor="BILLING_START",
            target=f"source:{config.steve_source}",
            before=None if before is None else {"live_from": before.isoformat()},
            after={"live_from": start.isoformat()},
        )
    since, was = (
        None if at is None else at.astimezone(config.timezone).isoformat() for at in (start, before)
    )
    return (
        f"By BILLING_START billing is live from {since}; before, "
        + ("nothing was sent" if was is None else f"it was live from {was}")
        + ". What that changes is decided anew."
    )


def go_live(config: Config, live_from: datetime, *, by: str, user: User | None = None) -> None:
    """Begin to bill sessions that stopped at or after ``live_from``.

    Raises:
        ControlError: when it is live already, or when ``BILLING_START`` decides.
    """
    with effect("db commit go live"), transaction.atomic():
        control = _locked(config.steve_source)
        refuse_if_live(status_of(config, control))
        _set_live_from(control, live_from, by)
        audit.record(
            "delivery.go_live",
            user=user,
            actor=by,
            target=f"source:{config.steve_source}",
            after={"live_from": live_from.isoformat()},
        )


def refuse_if_live(status: DeliveryStatus) -> None:
    """Say why nobody can go live.

    Raises:
        ControlError: when it is live already, or when ``BILLING_START`` decides.
    """
    if status.live_from is None:
        return
    at = {"at": day_and_time(status.live_from)}
    if status.from_environment:
        raise ControlError(
            _(
                "BILLING_START is set in the environment (%(at)s), so billing is live from there: another "
                "date is set there, too, and the worker started anew."
            )
            % at
        )
    raise ControlError(
        _("Billing is already live, from %(at)s. That cannot be moved: sessions have been billed by it.") % at
    )


@dataclass(frozen=True, slots=True)
class PreviewLine:
    """What going live would send for one customer and subscription."""

    customer: str
    subscription: str
    sessions: int
    energy_wh: int


def preview_go_live(config: Config, live_from: datetime) -> list[PreviewLine]:
    """What would be billed if billing went live from there, by customer, most energy first."""
    with connection.cursor() as cursor:
        cursor.execute(_PREVIEW, {"source": config.steve_source, "live_from": live_from})
        return [PreviewLine(*row) for row in cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class Unbilled:
    """Sessions that going live would not send: stopped before (and then excluded), or held for a reason."""

    before: Amount
    held: Amount


def preview_unbilled(config: Config, live_from: datetime) -> Unbilled:
    """What would not be billed if billing went live from there, so that nobody is surprised by it."""
    with connection.cursor() as cursor:
        bound: dict[str, Any] = {
            "source": config.steve_source,
            "live_from": live_from,
            "stays_held": _STAYS_HELD,
        }
        cursor.execute(_PREVIEW_UNBILLED, bound)
        before, before_wh, held, held_wh = cursor.fetchone()
    return Unbilled(Amount(before, before_wh), Amount(held, held_wh))


def pause(config: Config, *, by: str, reason: str, user: User | None = None) -> None:
    """Send nothing until resumed; what is queued stays queued. Says nothing twice.

    A person's pause stays a person's, and takes over one that came by itself; a pause that needs a person
    takes over one that would end by itself. So no cause ends with another one, and none is forgotten.
    """
    with effect("db commit pause"), transaction.atomic():
        pause_within(config.steve_source, by=by, reason=reason, user=user)


def pause_within(source: str, *, by: str, reason: str, user: User | None = None) -> None:
    """:func:`pause` a source within a transaction of the caller's: both happen, or neither."""
    control = _locked(source)
    before = None
    if control.paused_at is None:
        control.paused_at, control.paused_by, control.pause_reason = clock.now(), by, reason
    else:
        before = {"paused_by": control.paused_by, "reason": control.pause_reason}
        if not _add_cause(control, by, reason):
            return
    control.save(update_fields=["paused_at", "paused_by", "pause_reason"])
    audit.record(
        "delivery.pause",
        user=user,
        actor=by,
        target=f"source:{source}",
        before=before,
        after={"reason": reason},
    )


def _add_cause(control: DeliveryControl, by: str, reason: str) -> bool:
    """Give a pause that is in force one more cause; False when that says nothing new."""
    before = control.pause_reason or ""
    ends = by == BY_ITSELF and reason.startswith(ENDS_BY_ITSELF)
    if control.paused_by != BY_ITSELF:
        if by != BY_ITSELF or ends or BESIDES in before:
            return False
        control.pause_reason = f"{before.rstrip('.')}.{BESIDES}{reason}"
        return True
    if by == BY_ITSELF and (
        ends
        or reason in before
        or reason.startswith(STRANGERS)
        or not before.startswith((*ENDS_BY_ITSELF, UNKNOWN_EVENTS, STRANGERS))
    ):
        return False
    if not before.startswith(ENDS_BY_ITSELF):
        reason = f"{reason.rstrip('.')}.{BESIDES}{before}"
    control.paused_at, control.paused_by, control.pause_reason = clock.now(), by, reason
    return True


def resume(config: Config, *, by: str, user: User | None = None, seen: DeliveryStatus | None = None) -> bool:
    """Send again; False when it was not paused.

    Args:
        config: the settings.
        by: who does it, for the audit.
        user: their account, if any.
        seen: the pause that is to end; None = whichever is in force.

    Raises:
        ControlError: when another pause than the one that was seen is in force.
    """
    with effect("db commit resume"), transaction.atomic():
        control = _locked(config.steve_source)
        if control.paused_at is None:
            return False
        if seen is not None and (control.paused_at, control.pause_reason) != (
            seen.paused_at,
            seen.pause_reason,
        ):
            raise ControlError(
                _("Another cause came meanwhile: %(why)s Look at that first, then resume.")
                % {"why": control.pause_reason}
            )
        before = {"paused_by": control.paused_by, "reason": control.pause_reason}
        control.paused_at = control.paused_by = control.pause_reason = None
        control.save(update_fields=["paused_at", "paused_by", "pause_reason"])
        audit.record(
            "delivery.resume", user=user, actor=by, target=f"source:{config.steve_source}", before=before
        )
        return True


def resume_after_adopting(config: Config, *, by: str) -> DeliveryStatus:
    """Send again if it stopped because the ledger had to learn what Lago holds; any other pause stays.

    Returns:
        Whether usage events are sent now, else why not.
    """
    return _resume_if(config, (ADOPTING, UNKNOWN_EVENTS), read_status(config), by=by)


def pause_for_refused_key(config: Config, said: str) -> None:
    """Stop delivery because Lago refuses the key, whatever it says."""
    reason = f"{KEY_REFUSED} ({said}). Delivery goes on by itself once a valid key is in place."
    pause(config, by=BY_ITSELF, reason=reason)


def ends_with(paused_by: str | None, pause_reason: str | None) -> Literal["key", "adopt", "person"]:
    """What ends a pause: a valid key or `adopt` by themselves, any other cause a person who resumes. Pure."""
    if paused_by != BY_ITSELF or not (pause_reason or "").startswith(ENDS_BY_ITSELF):
        return "person"
    return "key" if (pause_reason or "").startswith(KEY_REFUSED) else "adopt"


def how_it_goes_on(paused_by: str | None, pause_reason: str | None) -> str:
    """What to do about a pause, by what ends it."""
    return {
        "key": "Put a valid LAGO_API_KEY in place: delivery goes on by itself with the next run.",
        "adopt": "Delivery goes on by itself when that has ended; if it was broken off: ocpp-billing adopt.",
        "person": "Settle the cause, then let an admin resume: ocpp-billing resume.",
    }[ends_with(paused_by, pause_reason)]


def resume_after_refused_key(config: Config, status: DeliveryStatus) -> DeliveryStatus:
    """The key is valid (again): if nothing else stopped delivery, it goes on."""
    return _resume_if(config, (KEY_REFUSED,), status, by=BY_ITSELF)


def _resume_if(
    config: Config, reasons: tuple[str, ...], status: DeliveryStatus, *, by: str
) -> DeliveryStatus:
    """End a pause that came by itself for one of these reasons, unless another one is in force by now."""
    if status.paused_by != BY_ITSELF or not (status.pause_reason or "").startswith(reasons):
        return status
    with contextlib.suppress(ControlError):
        resume(config, by=by, seen=status)
    return read_status(config)


def pin_organization(config: Config, organization: Organization) -> DeliveryStatus:
    """Remember Lago's organisation at first use; pause when the key belongs to another one later.

    Returns:
        Whether usage events are sent, as it was read.

    Raises:
        ControlError: when it is another organisation than the one pinned.
    """
    with effect("db commit organization"), transaction.atomic():
        control = _locked(config.steve_source)
        if control.lago_organization_id is None:
            control.lago_organization_id = organization.lago_id
            control.lago_organization_name = organization.name
            control.save(update_fields=["lago_organization_id", "lago_organization_name"])
    if control.lago_organization_id != organization.lago_id:
        reason = (
            f"LAGO_API_KEY belongs to the organisation {organization.name or organization.lago_id}, but this "
            f"ledger bills into {control.lago_organization_name or control.lago_organization_id}. Put the "
            "right key back and resume; to bill into another organisation, start with an empty database."
        )
        pause(config, by=BY_ITSELF, reason=reason)
        raise ControlError(reason)
    return status_of(config, control)


def _locked(source: str) -> DeliveryControl:
    locked = DeliveryControl.objects.select_for_update().filter(source_id=source)
    if (control := locked.first()) is not None:
        return control
    Source.objects.get_or_create(name=source)
    DeliveryControl.objects.get_or_create(source_id=source)
    return locked.get()


def _set_live_from(control: DeliveryControl, live_from: datetime, by: str) -> None:
    control.live_from, control.live_set_at, control.live_set_by = live_from, clock.now(), by
    control.save(update_fields=["live_from", "live_set_at", "live_set_by"])
    bound: dict[str, Any] = {"source": control.source_id, "live_from": live_from}
    with connection.cursor() as cursor:
        ask_again(cursor, _CHANGED_BY_START, bound)


# Whatever the new instant can change: what is queued or held from before it, and what an earlier one
# had excluded. What Lago may know stays as it is.
_CHANGED_BY_START = """
s.source_id = %(source)s AND s.stopped_at IS NOT NULL AND s.superseded_at IS NULL
AND ((s.state IN ('held', 'queued') AND s.stopped_at < %(live_from)s) OR s.reason = 'before_go_live')
"""

_PREVIEW = """
SELECT e.external_customer_id, e.external_subscription_id,
    count(DISTINCT e.session_id), sum(e.energy_wh)::bigint
FROM usage_event e JOIN charging_session s ON s.id = e.session_id
WHERE e.source_id = %(source)s AND e.state = 'queued' AND s.stopped_at >= %(live_from)s
GROUP BY 1, 2 ORDER BY 4 DESC, 1, 2
"""

# What is held for one of these stays held, however old: these rules count before the one about going live.
_STAYS_HELD = [
    reason.value
    for reason in takewhile(lambda reason: reason is not Reason.BEFORE_GO_LIVE, Reason)
    if reason is not Reason.UNDECIDED
]

_PREVIEW_UNBILLED = """
SELECT count(*) FILTER (WHERE excluded), coalesce(sum(energy_wh) FILTER (WHERE excluded), 0)::bigint,
    count(*) FILTER (WHERE NOT excluded AND state = 'held'),
    coalesce(sum(energy_wh) FILTER (WHERE NOT excluded AND state = 'held'), 0)::bigint
FROM (
    SELECT state, greatest(energy_wh, 0) AS energy_wh,
        stopped_at < %(live_from)s AND coalesce(reason, '') <> ALL(%(stays_held)s) AS excluded
    FROM charging_session
    WHERE source_id = %(source)s AND stopped_at IS NOT NULL AND state IN ('held', 'queued')
) session
"""
