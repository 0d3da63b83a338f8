"""The watch lane: between two full runs, has a session stopped or a new one begun?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
from django.db import connection

from ocpp_billing.charging.known import KnownSessions
from ocpp_billing.charging.models import MalformedRow, Source
from ocpp_billing.effects import effect
from ocpp_billing.steve.capabilities import Capabilities, from_settings
from ocpp_billing.steve.discovery import Discovery
from ocpp_billing.steve.wire import fingerprint
from ocpp_billing.sync.heartbeat import leader_transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.config import Config
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.progress import ReadingProgress
    from ocpp_billing.steve.wire import TransactionsAnswer

# What a look may change of the progress when it found nothing: the pace of what makes StEvE
# work hard, and where it has come among more open sessions than one call carries.
PACED: Final = ("active", "watched_after")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of StEvE, kept until it is clear whether a run is worth while."""

    shown: TransactionsAnswer
    gone: tuple[int, ...]


@dataclass(slots=True)
class Look:
    """One look at StEvE.

    Attributes:
        discovery: who looked; its progress belongs to what was found.
        answers: what StEvE said, in order; nothing of it is recorded yet.
        news: whether any of it differs from what the ledger knows.
        same_steve: False when the last known sessions are not what they were: only a full run may go on.
    """

    discovery: Discovery
    answers: list[Answer] = field(default_factory=list)
    news: bool = False
    same_steve: bool = True


def look(config: Config, steve: SteveClient, *, worker: str) -> Look | None:
    """Ask StEvE what is open and what comes next; None before the first full run has read its history.

    The cost does not depend on the length of the history: a call with a list of ids from StEvE 3.11 on,
    on older ones single ids while few sessions are open, else the active list, paced by its own duration.

    Raises:
        SteveError: when StEvE cannot be asked.
        LeadershipLostError: when another worker leads.
    """
    source = Source.objects.filter(name=config.steve_source).first()
    capabilities = None if source is None else _capabilities(config, source)
    if source is None or capabilities is None:
        return None
    known = KnownSessions(source.name)
    paced_before = _pace(source.progress)
    answers: list[Answer] = []

    def collect(
        answer: TransactionsAnswer,
        *,
        gone: Sequence[int],
        progress: ReadingProgress,  # noqa: ARG001 - what a recorder is given
        rewind_to: int | None = None,  # noqa: ARG001
    ) -> Sequence[int]:
        answers.append(Answer(answer, tuple(gone)))
        return ()

    discovery = Discovery(
        client=steve,
        capabilities=capabilities,
        known=known,
        record=collect,
        progress=source.progress,
        say=lambda _: None,
        zone=config.timezone,
    )
    discovery.watch()
    found = Look(discovery, answers, news=any(_is_news(answer, known) for answer in answers))
    if found.news:
        found.same_steve = discovery.is_still_itself()
    elif (pace := _pace(discovery.progress)) != paced_before:
        _store_pace(worker, source.name, pace)
    return found


def _capabilities(config: Config, source: Source) -> Capabilities | None:
    """What a full run found out about this StEvE's release; None when there was none that read it all.

    What it may not know yet, how windows are compared, is of no use here.
    """
    if not source.progress.get("backfilled_at"):
        return None
    meant = from_settings(config)
    if meant is not None:
        return meant
    try:
        return Capabilities.from_dict(source.capabilities or {})
    except ValueError:
        return None


def _is_news(answer: Answer, known: KnownSessions) -> bool:
    """Whether an answer says anything that the ledger does not know.

    Only open sessions and unknown numbers are asked for, so a stop is always news.
    """
    rows = answer.shown.rows
    fingerprints = known.fingerprints([row.steve_id for row in rows]) if rows else {}
    if answer.gone or any(
        row.stopped_at is not None or fingerprints.get(row.steve_id) != fingerprint(row) for row in rows
    ):
        return True
    malformed = {row.steve_id for row in answer.shown.malformed if row.steve_id is not None}
    return len(malformed) > _already_set_aside(known.source, malformed)


def _already_set_aside(source: str, steve_ids: set[int]) -> int:
    if not steve_ids:
        return 0
    rows = MalformedRow.objects.filter(source_id=source, steve_id__in=steve_ids, resolved_at=None)
    return rows.values("steve_id").distinct().count()


def _pace(progress: ReadingProgress) -> dict[str, Any]:
    return {name: progress[name] for name in PACED if name in progress}


def _store_pace(worker: str, source: str, pace: dict[str, Any]) -> None:
    with effect("db commit pace"), leader_transaction(worker), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE source SET progress = progress || %s::jsonb WHERE name = %s",
            [msgspec.json.encode(pace).decode(), source],
        )
