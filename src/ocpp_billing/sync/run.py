"""One synchronization: the five steps of the way of the data. Read this first.

    StEvE --1 discover--> charging --2 record--> 3 decide --4 deliver--> Lago --5 confirm

Every step is resumable by itself: it takes from the ledger what is left to do, and writes what it did in
transactions that hold together. A crash anywhere loses nothing and doubles nothing; the next run completes
what was begun. A step that fails is recorded, and the others still do what they can: Lago being down
does not stop the reading of StEvE, nor the other way round.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ocpp_billing import clock
from ocpp_billing.billing import control
from ocpp_billing.billing.adopt import pause_where_history_is_unknown
from ocpp_billing.billing.balance import keep_counters
from ocpp_billing.billing.confirm import confirm_events
from ocpp_billing.billing.decide import GROWN_MUCH, DecisionPolicy, decide_sessions
from ocpp_billing.billing.deliver import Courier
from ocpp_billing.billing.outbox import break_leases, unfinished
from ocpp_billing.billing.rules import Limits
from ocpp_billing.charging.ingest import (
    IngestCounts,
    Restored,
    ingest_transactions,
    mark_vanished,
    rewind,
)
from ocpp_billing.charging.known import KnownSessions
from ocpp_billing.charging.models import Source
from ocpp_billing.charging.stuck import StuckSearch
from ocpp_billing.charging.tags import ingest_tags
from ocpp_billing.effects import effect
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.lago.errors import Forbidden, LagoError, Unauthorised
from ocpp_billing.steve.capabilities import Capabilities, override, probe
from ocpp_billing.steve.discovery import REST_FACTOR, TAGS_EVERY, AnotherSteveError, Discovery
from ocpp_billing.steve.errors import SteveError
from ocpp_billing.sync.database import fenced_transaction, refresh_statistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocpp_billing.config import Config
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.wire import TransactionsAnswer
    from ocpp_billing.sync.database import Fence
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
    before = (steve.calls, lago.calls)
    control.apply_billing_start(config)
    break_leases(config.steve_source, journal.fence)
    directory = LagoDirectory(lago, config.lago_metric_code)

    discover_and_record(config, steve, journal)
    decide(config, directory, journal)
    deliver(config, lago, directory, journal)
    confirm(config, lago, directory, journal)
    account(config, journal)

    journal.counts["steve_calls"] = steve.calls - before[0]
    journal.counts["lago_calls"] = lago.calls - before[1]
    return journal.finish(control.read_status(config).mode)


# -- 1 and 2: discover and record ----------------------------------------------------------------------


def discover_and_record(config: Config, steve: SteveClient, journal: RunJournal) -> None:
    """Read what may be new or changed, and write each answer down before the next question."""
    recorder = Recorder(config.steve_source, journal.fence)
    found = recorder.found
    with journal.step("discover", SteveError, AnotherSteveError), journal.step("record") as recorded:
        try:
            with effect("db commit source"):
                source, _ = Source.objects.get_or_create(name=config.steve_source)
            capabilities = _capabilities(config, steve, source)
            progress = source.progress

            discovery = Discovery(
                client=steve,
                capabilities=capabilities,
                known=KnownSessions(source.name),
                record=recorder,
                progress=progress,
                say=lambda text: journal.say("discover.progress", text),
                zone=config.timezone,
            )
            with pause_where_identity_is_in_doubt(config, discovery):
                discovery.cycle()
            if found.discovered >= GROWN_MUCH:
                refresh_statistics("charging_session")
            _look_for_stuck_sessions(config, discovery, journal)
            _read_tags(source.name, steve, progress, journal)
        finally:
            recorded |= {
                "discovered": found.discovered,
                "changed": found.changed,
                "malformed": found.malformed,
            }
    if found.discovered >= GROWN_MUCH:
        refresh_statistics("charging_session", "id_tag")
    if found.discovered or found.changed or found.malformed:
        journal.say(
            "record.done",
            f"{found.discovered} sessions discovered, {found.changed} changed, {found.malformed} set aside",
        )


@dataclass(slots=True)
class Recorder:
    """Writes down what discovery read, and how far it has come, in one transaction each.

    Attributes:
        source: name of the StEvE.
        fence: the run.
        found: what all answers together brought.
    """

    source: str
    fence: Fence
    found: IngestCounts = field(default_factory=IngestCounts)

    def __call__(
        self,
        answer: TransactionsAnswer,
        *,
        gone: Sequence[int],
        progress: dict[str, Any],
        rewind_to: int | None = None,
    ) -> Sequence[int]:
        """Record one answer: see :class:`ocpp_billing.steve.discovery.Recorder`."""
        with fenced_transaction("record", self.fence) as cursor:
            now = clock.now()
            read = ingest_transactions(
                cursor, self.source, answer.rows, answer.malformed, now, _restored(progress)
            )
            if gone:
                mark_vanished(cursor, self.source, gone, now)
            if rewind_to is not None:
                rewind(cursor, self.source, rewind_to)
            _store_progress(cursor, self.source, progress)
        self.found.add(read)
        return read.strangers


@contextmanager
def pause_where_identity_is_in_doubt(config: Config, discovery: Discovery) -> Iterator[None]:
    """Stop delivery when StEvE is another one, was restored, or shows others under known numbers."""
    restored_before = discovery.progress.get("restored")
    try:
        yield
    except AnotherSteveError as error:
        control.pause(config, by=control.BY_ITSELF, reason=str(error))
        raise
    restored = discovery.progress.get("restored")
    if restored != restored_before and restored is not None:
        reason = (
            f"StEvE was restored from a backup: ids after {restored['after']} mean new sessions now. Check "
            "that the sessions on both sides of it look right, then resume."
        )
        control.pause(config, by=control.BY_ITSELF, reason=reason)
    if discovery.strangers:
        some = ", ".join(map(str, sorted(discovery.strangers)[:5]))
        reason = f"StEvE shows other sessions under numbers that are known ({some}); they were not recorded."
        control.pause(config, by=control.BY_ITSELF, reason=reason)
        raise AnotherSteveError(reason)


def _look_for_stuck_sessions(config: Config, discovery: Discovery, journal: RunJournal) -> None:
    """Set aside what will hardly ever stop by itself, with the evidence of how much was delivered."""
    found = StuckSearch(
        source=config.steve_source,
        client=discovery.client,
        capabilities=discovery.capabilities,
        stuck_after=timedelta(hours=config.stuck_after_hours),
        record=discovery.record,
        progress=discovery.progress,
        fence=journal.fence,
    ).search()
    if found.stuck or found.going_on:
        journal.say("stuck.done", f"{found.stuck} sessions became stuck, {found.going_on} go on")


def _restored(progress: dict[str, Any]) -> Restored | None:
    mark = progress.get("restored")
    return None if mark is None else Restored(int(mark["after"]), datetime.fromisoformat(mark["at"]))


def _capabilities(config: Config, steve: SteveClient, source: Source) -> Capabilities:
    """What this StEvE's release can do: from the settings, from the ledger, or found out now."""
    if config.steve_release:
        return override(config.steve_release, has_username=config.steve_api_username is not None)
    api_url = steve.locate()
    if source.capabilities and source.base_url == api_url:
        try:
            known = Capabilities.from_dict(source.capabilities)
        except ValueError:
            known = None
        if known is not None and known.complete:
            return known
    latest = KnownSessions(source.name).latest_ids(1)
    capabilities = probe(steve, latest[0] if latest else None)
    source.capabilities, source.capabilities_at, source.base_url = (
        capabilities.to_dict(),
        clock.now(),
        api_url,
    )
    with effect("db commit capabilities"):
        source.save(update_fields=["capabilities", "capabilities_at", "base_url"])
    return capabilities


def _read_tags(name: str, steve: SteveClient, progress: dict[str, Any], journal: RunJournal) -> None:
    """Read the list of tags when it is old or a tag turned up whose parent we do not know; paced."""
    last = progress.get("tags")
    if last is not None:
        read_at = datetime.fromisoformat(last["at"])
        rest = timedelta(seconds=REST_FACTOR * float(last["took_s"]))
        wanted = KnownSessions(name).unknown_tags() or clock.now() >= read_at + TAGS_EVERY
        if not wanted or clock.now() < read_at + rest:
            return
    busy_before = steve.busy_s
    answer = steve.tags()
    progress["tags"] = {"at": clock.now().isoformat(), "took_s": round(steve.busy_s - busy_before, 3)}
    with fenced_transaction("record tags", journal.fence) as cursor:
        ingest_tags(cursor, name, answer.rows, clock.now())
        _store_progress(cursor, name, progress)
    if answer.malformed:
        journal.left(f"{len(answer.malformed)} tags of StEvE could not be read: {answer.malformed[0].reason}")


def _store_progress(cursor: Any, source: str, progress: dict[str, Any]) -> None:
    cursor.execute(
        "UPDATE source SET progress = %s WHERE name = %s", [msgspec.json.encode(progress).decode(), source]
    )


# -- 3: decide -----------------------------------------------------------------------------------------


def decide(config: Config, directory: LagoDirectory, journal: RunJournal, *, ask_again: bool = True) -> None:
    """Decide every session that asks for it; what waits for Lago asks again in every full run."""
    with journal.step("decide", LagoError) as counted:
        if ask_again:
            _ask_again_where_causes_may_be_gone(config, journal)
        counts = decide_sessions(policy_of(config), directory, journal.fence)
        counted |= {"held": counts.held, "excluded": counts.excluded, "queued": counts.queued}
        if counts.decided:
            journal.say(
                "decide.done",
                f"{counts.decided} sessions decided: {counts.queued} to bill, {counts.held} held, "
                f"{counts.excluded} excluded",
            )


def policy_of(config: Config) -> DecisionPolicy:
    """What decisions depend on, from the settings and the go-live instant."""
    return DecisionPolicy(
        source=config.steve_source,
        metric_code=config.lago_metric_code,
        limits=Limits(
            max_session_kwh=config.max_session_kwh,
            max_power_kw=config.max_power_kw,
            max_session_hours=config.max_session_hours,
            min_session_kwh=config.min_session_kwh,
        ),
        late_policy=config.late_policy,
        max_auto_correction_wh=int(config.max_auto_correction_kwh * 1000),
        send_id_tag=config.lago_send_id_tag,
        go_live_at=control.read_status(config).live_from,
    )


def _ask_again_where_causes_may_be_gone(config: Config, journal: RunJournal) -> None:
    """Held sessions are decided anew by themselves when their cause may have gone away.

    What waits for Lago: in every run. Everything held: once a night. What a threshold held or excluded:
    when the settings have changed. Mappings, rulings and evidence ask by themselves when they change.
    """
    policy = policy_of(config)
    today = clock.now().astimezone(config.timezone).date().isoformat()
    settings = repr((policy.limits, policy.late_policy, policy.max_auto_correction_wh, policy.metric_code))
    with fenced_transaction("ask again", journal.fence) as cursor:
        cursor.execute("SELECT progress FROM source WHERE name = %s FOR UPDATE", [config.steve_source])
        row = cursor.fetchone()
        progress = {} if row is None else msgspec.json.decode(row[0])
        if progress.get("settings", settings) != settings:
            states, reasons = ["held", "excluded", "queued"], None
        elif progress.get("asked_again_on") != today:
            states, reasons = ["held"], None
        else:
            states, reasons = ["held"], WAITS_FOR_LAGO
        bound = {"source": config.steve_source, "states": states, "reasons": reasons}
        cursor.execute(_ASK_AGAIN, bound)
        progress |= {"settings": settings, "asked_again_on": today}
        _store_progress(cursor, config.steve_source, progress)


WAITS_FOR_LAGO: list[str] | None = [
    "no_subscription",
    "ambiguous_subscription",
    "metric_not_charged",
    "late_period",
]

_ASK_AGAIN = """
UPDATE charging_session SET needs_decision = true, asked = asked + 1
WHERE source_id = %(source)s AND state = ANY(%(states)s) AND NOT needs_decision
  AND (%(reasons)s::text[] IS NULL OR reason = ANY(%(reasons)s::text[]))
"""


# -- 4: deliver ----------------------------------------------------------------------------------------


def deliver(config: Config, lago: LagoClient, directory: LagoDirectory, journal: RunJournal) -> None:
    """Send what is queued, if billing is live and Lago is who it was."""
    with journal.step("deliver", LagoError, control.ControlError) as counted:
        _check_counterpart(config, lago)
        if control.read_status(config).mode != "live":
            return
        pause_where_history_is_unknown(config, lago)
        courier = Courier(
            client=lago,
            directory=directory,
            source=config.steve_source,
            redecide=lambda: decide(config, directory, journal),
            fence=journal.fence,
            events_per_second=config.delivery_events_per_second,
            concurrency=config.delivery_concurrency,
        )
        try:
            courier.deliver()
        finally:
            counts = courier.counts
            counted |= {"accepted": counts.accepted, "rejected": counts.rejected}
            counted |= {"held": counts.held}
        if courier.unauthorised:
            reason = f"{courier.stopped}. Put a LAGO_API_KEY in place that may write events, then resume."
            control.pause(config, by=control.BY_ITSELF, reason=reason)
            raise control.ControlError(reason)
        if courier.stopped is not None:
            raise control.ControlError(f"Delivery stopped: {courier.stopped}. What is queued stays queued.")
        if left := unfinished(config.steve_source):
            journal.left(f"{left} usage events wait for another attempt")


def _check_counterpart(config: Config, lago: LagoClient) -> None:
    """Make sure that the key is valid and belongs to the organisation that this ledger bills into.

    Raises:
        ControlError: when it is another organisation's; delivery is paused then.
        LagoError: when Lago cannot be asked; delivery is paused when it refuses the key.
    """
    try:
        organization = lago.organization()
    except (Unauthorised, Forbidden) as error:
        control.pause_for_refused_key(config, str(error))
        raise
    control.resume_after_refused_key(config)
    control.pin_organization(config, organization)


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
            f"{proof.unexplained.energy_wh} Wh are unexplained. Pause delivery (ocpp-billing pause) "
            "and report it with the output of: ocpp-billing balance --json"
        )
    else:
        journal.say("balance.proved", f"{proof.balance.read.energy_wh} Wh read, every one accounted for")
