"""Steps 1 and 2 of a run: ask StEvE for what may be new or changed, and write each answer down."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ocpp_billing import clock
from ocpp_billing.billing import control
from ocpp_billing.billing.decide import GROWN_MUCH
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
from ocpp_billing.database import fenced_transaction, refresh_statistics
from ocpp_billing.effects import effect
from ocpp_billing.steve.capabilities import Capabilities, from_settings, probe
from ocpp_billing.steve.discovery import Discovery, night_is_due, night_of
from ocpp_billing.steve.errors import BadRequest, FeatureMissing, SteveError, WrongAddress
from ocpp_billing.steve.identity import AnotherSteveError
from ocpp_billing.steve.idle import is_made_up_for

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ocpp_billing.config import Config
    from ocpp_billing.database import Fence
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.progress import ReadingProgress
    from ocpp_billing.steve.wire import TransactionsAnswer
    from ocpp_billing.sync.journal import RunJournal

# What a StEvE can do is found out again with the reading of each night, or when that
# is this late: it may have been upgraded.
PROBED_AT_LEAST_EVERY = timedelta(days=2)


def discover_and_record(config: Config, steve: SteveClient, journal: RunJournal) -> None:
    """Read what may be new or changed, and write each answer down before the next question."""
    recorder = Recorder(config.steve_source, journal.fence)
    with journal.step("discover", SteveError, AnotherSteveError), journal.step("record") as recorded:
        try:
            with effect("db commit source"):
                source, _ = Source.objects.get_or_create(name=config.steve_source)
            capabilities = _capabilities(config, steve, source)
            progress: ReadingProgress = source.progress

            discovery = Discovery(
                client=steve,
                capabilities=capabilities,
                known=KnownSessions(source.name),
                record=recorder,
                progress=progress,
                say=lambda text: journal.say("discover.progress", text),
                zone=config.timezone,
            )
            with _forget_where_refused(source):
                with pause_where_identity_is_in_doubt(config, discovery):
                    discovery.cycle()
                    look_for_stuck_sessions(
                        config, discovery, journal, calls_to_look_again=discovery.evidence_calls()
                    )
                    discovery.settle_strangers()
                _read_tags(source.name, discovery, journal)
        finally:
            recorded.update(recorder.found.by_name())
    if recorder.found.discovered >= GROWN_MUCH:
        refresh_statistics("charging_session", "id_tag")
    recorder.say_what_came(journal)


@dataclass(slots=True)
class Recorder:
    """Writes down what discovery read, and how far it has come, in one transaction each.

    Attributes:
        source: name of the StEvE.
        fence: the run.
        found: what all answers together brought.
        counted: how many of them PostgreSQL's statistics know of.
    """

    source: str
    fence: Fence
    found: IngestCounts = field(default_factory=IngestCounts)
    counted: int = 0

    def say_what_came(self, journal: RunJournal) -> None:
        """A line in the log of the run, if anything came."""
        if any(self.found.by_name().values()):
            journal.say("record.done", str(self.found))

    def __call__(
        self,
        answer: TransactionsAnswer,
        *,
        gone: Sequence[int],
        progress: ReadingProgress,
        rewind_to: int | None = None,
    ) -> Sequence[int]:
        """Record one answer: see :class:`ocpp_billing.steve.discovery.Recorder`."""
        with fenced_transaction("record", self.fence) as cursor:
            now = clock.now()
            if rewind_to is not None:
                # Here, so that no crash comes between: a person looks before anything new is sent. And
                # first, as whoever goes live locks delivery before sessions.
                control.pause_within(self.source, by=control.BY_ITSELF, reason=_says_restored(rewind_to))
            read = ingest_transactions(
                cursor, self.source, answer.rows, answer.malformed, now, _restored(progress)
            )
            if gone:
                mark_vanished(cursor, self.source, gone, now)
            if rewind_to is not None:
                rewind(cursor, self.source, rewind_to)
            store_progress(cursor, self.source, progress)
        self.found.add(read)
        if self.found.discovered >= 2 * self.counted + GROWN_MUCH:
            refresh_statistics("charging_session", "id_tag")
            self.counted = self.found.discovered
        return read.strangers


def _says_restored(last: int) -> str:
    return (
        f"StEvE was restored from a backup: ids after {last} mean new sessions now. (Where the last sessions "
        "were deleted, an old database gives their ids out again when it is restarted.) Check that the "
        "sessions on both sides of it look right, then resume."
    )


@contextmanager
def pause_where_identity_is_in_doubt(config: Config, discovery: Discovery) -> Iterator[None]:
    """Stop delivery when StEvE is another one, or shows others under known numbers.

    That it was restored stops delivery, too: see :class:`Recorder`.
    """
    try:
        yield
    except AnotherSteveError as error:
        control.pause(config, by=control.BY_ITSELF, reason=str(error))
        raise
    if discovery.strangers:
        some = ", ".join(map(str, sorted(discovery.strangers)[:5]))
        reason = f"{control.STRANGERS} ({some}); they were not recorded."
        control.pause(config, by=control.BY_ITSELF, reason=reason)
        raise AnotherSteveError(reason)


@contextmanager
def _forget_where_refused(source: Source) -> Iterator[None]:
    """StEvE refuses what it was able to do, or moved: the next run finds out anew where and what it is."""
    try:
        yield
    except (BadRequest, FeatureMissing, WrongAddress):
        with effect("db commit capabilities"):
            Source.objects.filter(pk=source.pk).update(capabilities=None, base_url="")
        raise


def look_for_stuck_sessions(
    config: Config,
    discovery: Discovery,
    journal: RunJournal,
    *,
    only: Collection[int] | None = None,
    calls_to_look_again: int = 0,
) -> None:
    """Set aside what will hardly ever stop by itself, with the evidence of how much was delivered.

    Args:
        config: the settings.
        discovery: who reads; what it is shown is recorded.
        journal: of the run.
        only: StEvE's ids of the sessions to look after; None = all.
        calls_to_look_again: for evidence that is known already.
    """
    found = StuckSearch(
        source=config.steve_source,
        client=discovery.client,
        capabilities=discovery.capabilities,
        stuck_after=timedelta(hours=config.stuck_after_hours),
        record=discovery.record_paced,
        progress=discovery.progress,
        fence=journal.fence,
        calls_to_look_again=calls_to_look_again,
    ).search(only)
    if found.stuck or found.going_on:
        journal.say("stuck.done", f"{found.stuck} sessions became stuck, {found.going_on} go on")


def _restored(progress: ReadingProgress) -> Restored | None:
    mark = progress.get("restored")
    return None if mark is None else Restored(int(mark["after"]), datetime.fromisoformat(mark["at"]))


def _capabilities(config: Config, steve: SteveClient, source: Source) -> Capabilities:
    """What this StEvE's release can do: from the settings, from the ledger, or found out now."""
    api_url = steve.locate(source.base_url)
    meant = from_settings(config)
    if meant is not None:
        if source.base_url != api_url:
            source.base_url, source.capabilities = api_url, None
            with effect("db commit capabilities"):
                source.save(update_fields=["base_url", "capabilities"])
        return meant
    if source.capabilities and source.base_url == api_url:
        try:
            known = Capabilities.from_dict(source.capabilities)
        except ValueError:
            known = None
        if known is not None and known.complete and _is_fresh(config, source):
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


def _is_fresh(config: Config, source: Source) -> bool:
    """Whether what a StEvE can do was found out lately: not before the night whose reading is due."""
    probed_at = source.capabilities_at
    if probed_at is None or abs(clock.now() - probed_at) >= PROBED_AT_LEAST_EVERY:
        return False
    if not source.progress.get("backfilled_at") or not night_is_due(source.progress, config.timezone):
        return True
    return night_of(probed_at, config.timezone) == night_of(clock.now(), config.timezone)


def _read_tags(name: str, discovery: Discovery, journal: RunJournal) -> None:
    """Read the list of tags when its turn has come, or a tag turned up whose parent we do not know; paced."""
    steve, progress = discovery.client, discovery.progress
    last = progress.get("tags")
    is_wanted = last is None or "tags" in discovery.planned
    if not is_wanted and not (is_made_up_for(last, clock.now()) and KnownSessions(name).unknown_tags()):
        return
    busy_before = steve.busy_s
    answer = steve.tags()
    progress["tags"] = {"at": clock.now().isoformat(), "took_s": round(steve.busy_s - busy_before, 3)}
    discovery.charge()
    with fenced_transaction("record tags", journal.fence) as cursor:
        ingest_tags(cursor, name, answer.rows, clock.now(), is_complete=not answer.malformed)
        store_progress(cursor, name, progress)
    if answer.malformed:
        journal.left(f"{len(answer.malformed)} tags of StEvE could not be read: {answer.malformed[0].reason}")


def store_progress(cursor: Any, source: str, progress: ReadingProgress) -> None:
    """Remember how far reading has come."""
    cursor.execute(
        "UPDATE source SET progress = %s WHERE name = %s", [msgspec.json.encode(progress).decode(), source]
    )
