"""One synchronization: the five steps of the way of the data. Read this first.

    StEvE --1 discover--> charging --2 record--> 3 decide --4 deliver--> Lago --5 confirm

Every step is resumable by itself: it takes from the ledger what is left to do, and writes what it did in
transactions that hold together. A crash anywhere loses nothing and doubles nothing; the next run completes
what was begun. A step that fails is recorded, and the others still do what they can: Lago being down
does not stop the reading of StEvE, nor the other way round.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from ocpp_billing.billing import control
from ocpp_billing.billing.balance import keep_counters
from ocpp_billing.billing.confirm import confirm_events
from ocpp_billing.billing.decide import decide_sessions
from ocpp_billing.billing.late import look_for_what_was_given_up
from ocpp_billing.billing.outbox import break_leases
from ocpp_billing.energy import say_kwh
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.lago.errors import LagoError
from ocpp_billing.sync.policy import ask_again_where_causes_may_be_gone, policy_of
from ocpp_billing.sync.reading import discover_and_record
from ocpp_billing.sync.sending import send_queued

if TYPE_CHECKING:
    from ocpp_billing.config import Config
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.sync.journal import RunJournal
    from ocpp_billing.sync.models import SyncRun


def synchronize(config: Config, steve: SteveClient, lago: LagoClient, journal: RunJournal) -> SyncRun:
    """Carry out one run, from asking StEvE to confirming what Lago counts.

    Args:
        config: the settings.
        steve: asks StEvE.
        lago: asks and tells Lago.
        journal: the running run; ended here.

    Raises:
        FenceError: when another worker has taken over.
    """
    if says := control.apply_billing_start(config):
        journal.say("run.billing_start", says, level="warning")
    break_leases(config.steve_source, journal.fence)
    directory = LagoDirectory(lago, config.lago_metric_code)

    with journal.counting_calls(steve, lago):
        discover_and_record(config, steve, journal)  # sync/reading.py
        decide(config, directory, journal)
        deliver(config, lago, directory, journal)
        confirm(config, lago, directory, journal)
        account(config, journal)

    return journal.finish(control.read_status(config).mode)


# -- 3: decide -----------------------------------------------------------------------------------------


def decide(config: Config, directory: LagoDirectory, journal: RunJournal, *, ask_again: bool = True) -> None:
    """Decide every session that asks for it; what waits for Lago asks again in every full run."""
    with journal.step("decide", LagoError) as counted:
        if ask_again:
            ask_again_where_causes_may_be_gone(config, journal)
        counts = decide_sessions(lambda: policy_of(config), directory, journal.fence)
        counted |= {"held": counts.held, "excluded": counts.excluded, "queued": counts.queued}
        if counts.decided:
            journal.say(
                "decide.done",
                f"{counts.decided} sessions decided: {counts.queued} to bill, {counts.held} held, "
                f"{counts.excluded} excluded",
            )


# -- 4: deliver ----------------------------------------------------------------------------------------


def deliver(config: Config, lago: LagoClient, directory: LagoDirectory, journal: RunJournal) -> None:
    """Send what is queued, if billing is live and Lago is who it was."""
    with journal.step("deliver", LagoError, control.ControlError) as counted:
        send_queued(  # sync/sending.py
            config, lago, directory, journal, counted, lambda: decide(config, directory, journal)
        )


# -- 5: confirm ----------------------------------------------------------------------------------------


def confirm(config: Config, lago: LagoClient, directory: LagoDirectory, journal: RunJournal) -> None:
    """Compare what Lago holds and counts with what was sent."""
    with journal.step("confirm", LagoError) as counted:
        counts = confirm_events(
            config.steve_source,
            lago,
            directory,
            timedelta(seconds=config.confirm_settle_seconds),
            journal.fence,
        )
        counted |= {"confirmed": counts.confirmed, "held": counts.conflicts}
        if counts.given_up:
            journal.say(
                "confirm.given_up",
                f"{counts.given_up} usage events given up: they came to Lago after the invoice of their "
                "period was final, which does not count them. Their sessions are decided anew.",
                level="warning",
            )
        for name in look_for_what_was_given_up(config.steve_source, lago, journal.fence):
            journal.say(
                "confirm.turned_up",
                f"{name} was given up, and is in Lago after all: see whether an invoice there counts it, "
                "besides what was billed instead",
                level="warning",
            )


# -- and, once a day: is every watt-hour accounted for? ------------------------------------------------


def account(config: Config, journal: RunJournal) -> None:
    """Keep the counters of the balance small, and prove them by a full recount when that is due."""
    proof = keep_counters(config.steve_source, journal.fence)
    if proof is None:
        return
    if proof.drift:
        journal.say(
            "balance.repaired",
            "counters of the balance differed from the full recount and were put right: "
            + "; ".join(map(str, proof.drift)),
            level="warning",
        )
    if proof.unexplained:
        journal.left(
            f"the balance does not add up: {proof.unexplained.sessions} sessions and "
            f"{say_kwh(proof.unexplained.energy_wh)} kWh are unexplained. Pause delivery (ocpp-billing "
            "pause) and report it with the output of: ocpp-billing balance --json"
        )
    else:
        read = say_kwh(proof.balance.read.energy_wh)
        journal.say("balance.proved", f"{read} kWh read, every watt-hour accounted for")
