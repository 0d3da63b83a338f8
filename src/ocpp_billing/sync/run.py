"""One synchronization: the five steps of the way of the data. Read this first.

    StEvE --1 discover--> charging --2 record--> 3 decide --4 deliver--> Lago --5 confirm

Every step is resumable by itself: it takes from the ledger what is left to do, and writes what it did in
transactions that hold together. A crash anywhere loses nothing and doubles nothing; the next run completes
what was begun. A step that fails is recorded, and the others still do what they can: Lago being down
does not stop the reading of StEvE, nor the other way round.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ocpp_billing import clock
from ocpp_billing.billing import control
from ocpp_billing.billing.confirm import confirm_events
from ocpp_billing.billing.decide import DecisionPolicy, decide_sessions
from ocpp_billing.billing.deliver import Courier
from ocpp_billing.billing.outbox import break_leases, unfinished
from ocpp_billing.billing.rules import Limits
from ocpp_billing.charging.ingest import IngestCounts, ingest_transactions, mark_vanished
from ocpp_billing.charging.known import KnownSessions
from ocpp_billing.charging.models import Source
from ocpp_billing.charging.tags import ingest_tags
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.lago.errors import LagoError
from ocpp_billing.steve.capabilities import Capabilities, override, probe
from ocpp_billing.steve.discovery import REST_FACTOR, TAGS_EVERY, Discovery
from ocpp_billing.steve.errors import SteveError
from ocpp_billing.sync.database import fenced_transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.config import Config
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.wire import TransactionsAnswer
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

    journal.counts["steve_calls"] = steve.calls - before[0]
    journal.counts["lago_calls"] = lago.calls - before[1]
    return journal.finish(control.read_status(config).mode)


# -- 1 and 2: discover and record ----------------------------------------------------------------------


def discover_and_record(config: Config, steve: SteveClient, journal: RunJournal) -> None:
    """Read what may be new or changed, and write each answer down before the next question."""
    found = IngestCounts()
    with journal.step("discover", SteveError), journal.step("record") as recorded:
        try:
            source, _ = Source.objects.get_or_create(name=config.steve_source)
            capabilities = _capabilities(config, steve, source)
            progress = source.progress

            def record(answer: TransactionsAnswer, *, gone: Sequence[int], progress: dict[str, Any]) -> None:
                with fenced_transaction("record", journal.fence) as cursor:
                    now = clock.now()
                    found.add(ingest_transactions(cursor, source.name, answer.rows, answer.malformed, now))
                    if gone:
                        mark_vanished(cursor, source.name, gone, now)
                    _store_progress(cursor, source.name, progress)

            Discovery(
                client=steve,
                capabilities=capabilities,
                known=KnownSessions(source.name),
                record=record,
                progress=progress,
                say=lambda text: journal.say("discover.progress", text),
            ).cycle()
            _read_tags(source.name, steve, progress, journal)
        finally:
            recorded |= {
                "discovered": found.discovered,
                "changed": found.changed,
                "malformed": found.malformed,
            }
    if found.discovered or found.changed or found.malformed:
        journal.say(
            "record.done",
            f"{found.discovered} sessions discovered, {found.changed} changed, {found.malformed} set aside",
        )


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


def decide(config: Config, directory: LagoDirectory, journal: RunJournal) -> None:
    """Decide every session that asks for it; what waits for Lago asks again in every run."""
    with journal.step("decide", LagoError) as counted:
        _ask_again_what_waits_for_lago(config.steve_source, journal)
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


def _ask_again_what_waits_for_lago(source: str, journal: RunJournal) -> None:
    """What is held for Lago's side is decided anew in every run: the cause may be gone by now."""
    with fenced_transaction("ask again", journal.fence) as cursor:
        cursor.execute(
            "UPDATE charging_session SET needs_decision = true, asked = asked + 1"
            " WHERE source_id = %s AND state = 'held' AND NOT needs_decision AND rest_reason = ANY(%s)",
            [source, ["no_subscription", "ambiguous_subscription", "metric_not_charged", "late_period"]],
        )


# -- 4: deliver ----------------------------------------------------------------------------------------


def deliver(config: Config, lago: LagoClient, directory: LagoDirectory, journal: RunJournal) -> None:
    """Send what is queued, if billing is live and Lago is who it was."""
    with journal.step("deliver", LagoError, control.ControlError) as counted:
        status = control.read_status(config)
        organization = lago.organization()
        control.pin_organization(config, organization)
        if status.mode != "live":
            return
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
            reason = f"Lago refuses LAGO_API_KEY ({courier.stopped}). Put a valid key in place, then resume."
            control.pause(config, by=control.BY_ITSELF, reason=reason)
            raise control.ControlError(reason)
        if courier.stopped is not None:
            raise control.ControlError(f"Delivery stopped: {courier.stopped}. What is queued stays queued.")
        if left := unfinished(config.steve_source):
            journal.left(f"{left} usage events wait for another attempt")


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
