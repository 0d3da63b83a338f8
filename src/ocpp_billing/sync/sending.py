"""What the step ``deliver`` needs around the courier: is Lago who it was, and what is said in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocpp_billing.billing import control
from ocpp_billing.billing.adopt import pause_where_history_is_unknown
from ocpp_billing.billing.deliver import Courier
from ocpp_billing.billing.outbox import unfinished
from ocpp_billing.lago.errors import Forbidden, Unauthorised

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocpp_billing.config import Config
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.directory import LagoDirectory
    from ocpp_billing.lago.wire import Organization
    from ocpp_billing.sync.journal import RunJournal


def send_queued(
    config: Config,
    lago: LagoClient,
    directory: LagoDirectory,
    journal: RunJournal,
    counted: dict[str, int],
    redecide: Callable[[], object],
) -> None:
    """Send what is queued, if billing is live and Lago is who it was.

    Args:
        config: the settings.
        lago: asks and tells Lago.
        directory: Lago's subscriptions.
        journal: the run.
        counted: told what became of usage events.
        redecide: decides sessions anew whose event is not to be sent any more.

    Raises:
        ControlError: delivery stopped, and why.
        LagoError: when Lago cannot be asked.
    """
    status, organization = _check_counterpart(config, lago)
    if status.mode != "live":
        return
    pause_where_history_is_unknown(config, lago)
    courier = Courier(
        client=lago,
        directory=directory,
        source=config.steve_source,
        redecide=redecide,
        fence=journal.fence,
        events_store=organization.events_store,
        events_per_second=config.delivery_events_per_second,
        concurrency=config.delivery_concurrency,
    )
    try:
        courier.deliver()
    finally:
        counts = courier.counts
        counted |= {"accepted": counts.accepted, "rejected": counts.rejected, "held": counts.held}
        if counts.given_up:
            journal.say(
                "deliver.given_up",
                f"{counts.given_up} usage events given up: Lago never got them and would not bill them "
                "any more. Their sessions are decided anew.",
            )
    if courier.unauthorised:
        reason = f"{courier.stopped}. Put a LAGO_API_KEY in place that may write events, then resume."
        control.pause(config, by=control.BY_ITSELF, reason=reason)
        raise control.ControlError(reason)
    if courier.stopped is not None:
        raise control.ControlError(f"Delivery stopped: {courier.stopped}. What is queued stays queued.")
    if courier.trouble is not None:
        raise courier.trouble
    if left := unfinished(config.steve_source):
        journal.left(f"{left} usage events wait for another attempt")


def _check_counterpart(config: Config, lago: LagoClient) -> tuple[control.DeliveryStatus, Organization]:
    """Make sure that the key is valid and belongs to the organisation that this ledger bills into.

    Returns:
        Whether usage events are sent to it, and what it says of itself.

    Raises:
        ControlError: when it is another organisation's; delivery is paused then.
        LagoError: when Lago cannot be asked; delivery is paused when it refuses the key.
    """
    try:
        organization = lago.organization()
    except (Unauthorised, Forbidden) as error:
        control.pause_for_refused_key(config, str(error))
        raise
    status = control.pin_organization(config, organization)
    return control.resume_after_refused_key(config, status), organization
