"""Step 1, discover: ask StEvE for what may be new or changed, and never trust a time watermark.

Ids grow in the order of arrival; timestamps are the chargers' own and do not. So sessions are found by
id: what was open is read again by id until it stops, and the ids above the highest one are probed. Holes
in the numbering, which may be tens of thousands wide, are crossed by what StEvE shows as active and by
a window of time; they are never probed one by one. What makes StEvE read its whole history (the active
list, windows, tags) is paced by its own measured duration. Ids in new gaps are asked for again for a while:
a lower one may show up after a higher one (:mod:`ocpp_billing.steve.unseen`).

A cycle in which nothing has happened makes at most four calls (:mod:`ocpp_billing.steve.idle`), and none
that takes long before all that earlier cycles took has been made up for. Beyond the four go what follows
from news (a session that left the active list, a hole, an unknown tag, a session that became stuck), stops
that may still change, and the reading of the night.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

from ocpp_billing import clock
from ocpp_billing.log import get_logger
from ocpp_billing.steve.client import EARLIEST, MOST_IDS_PER_CALL, id_batches
from ocpp_billing.steve.identity import IDENTITY_SAMPLE, Identity
from ocpp_billing.steve.idle import (
    MOST_CALLS,
    MOST_CALLS_AT_A_HOLE,
    MOST_CALLS_BY_ID,
    REST_FACTOR,
    Wish,
    is_made_up_for,
    plan_calls,
    portion,
)
from ocpp_billing.steve.unseen import after_answer, first_ids, with_noticed
from ocpp_billing.steve.wire import TransactionsAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocpp_billing.charging.known import Gap, KnownSessions
    from ocpp_billing.steve.capabilities import Capabilities
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.progress import Asked, Light, LongRead, ReadingProgress, Round, Windows

log = get_logger(__name__)

LONGEST_REST = timedelta(hours=6)
# Ids probed above the highest one known, where a call can carry a list of them.
LOOK_AHEAD = 50
# Reaches from offline chargers and late stops to wrong clocks; older ones are met by the nightly reads.
WINDOW = timedelta(hours=72)
WINDOW_AHEAD = timedelta(days=2)
# More in one answer would be most of what the engine holds in memory.
MOST_WINDOW_ROWS = 20_000
# Less than an hour, so that cycles an hour apart need not wait for the next but one.
TAGS_EVERY = timedelta(minutes=50)
# Less often than tags: whose session it is comes before how much of it is proved.
EVIDENCE_EVERY = timedelta(minutes=60)
EVIDENCE_PER_NIGHT = 50
VANISHED_EVERY = timedelta(hours=1)
STOPS_CHANGE_FOR = timedelta(hours=72)
MANUAL_STOPS_CHANGE_FOR = timedelta(days=180)

# Backfill: windows from now back to the beginning, as wide as brings about so many rows.
BACKFILL_ROWS = 5_000
FIRST_WIDTH = timedelta(days=1)
NARROWEST = timedelta(minutes=1)
END = datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC)
# Where a call carries one id only: open sessions that the watch asks for one by one instead of by the
# active list, ids at either edge of a wide gap, stops read again in one cycle, and ids that are worth asking
# for where it matters and does not happen often.
WATCHED_SINGLES = 2
EDGE_SINGLES = 2
RECHECKED_SINGLES = 2
GAP_SINGLES = 50
# Ids in gaps that are kept to be asked for again; and how many of them one call carries beside the last known
# ids, as many next ones, and as many that are gone.
MOST_UNSEEN = 1_000
UNSEEN_ALONG = MOST_IDS_PER_CALL - IDENTITY_SAMPLE - 2 * LOOK_AHEAD
# Below the highest id of the history, what was not shown may be late where a call carries one id only.
LATE_SINGLES = 10
# Reading again: from this time of the organisation's night on.
NIGHT_BEGINS = timedelta(hours=2)
NIGHTLY_REACH = timedelta(days=35)
COMPLETE_EVERY = timedelta(days=30)
GAP_IDS_PER_NIGHT = 20_000
NOTHING = TransactionsAnswer([], [])


class Recorder(Protocol):
    """Where discovery puts what it read: records it and its own progress in one transaction."""

    def __call__(
        self,
        answer: TransactionsAnswer,
        *,
        gone: Sequence[int],
        progress: ReadingProgress,
        rewind_to: int | None = None,
    ) -> Sequence[int]:
        """Record rows, ids that StEvE no longer shows, and how far reading has come.

        ``rewind_to`` makes that id the highest one known: what StEvE gives out after it is new.

        Returns:
            Ids that came with another fingerprint than the ledger knows, and were therefore not recorded.
        """
        ...


def night_of(at: datetime, zone: tzinfo) -> str:
    """The night that an instant belongs to: from :data:`NIGHT_BEGINS` to the same time of the next day.

    So a schedule that has no run in the small hours, or none later, has one in every night all the same.
    """
    return (at.astimezone(zone) - NIGHT_BEGINS).date().isoformat()


def night_is_due(progress: ReadingProgress, zone: tzinfo) -> bool:
    """Whether this night's reading has still to be done: that cycle asks more than others."""
    return bool(progress.get("night") != night_of(clock.now(), zone))


@dataclass(slots=True)
class Discovery:
    """One source's reading of transactions.

    Attributes:
        client: asks StEvE.
        capabilities: what its release can do.
        known: what the ledger knows.
        record: writes an answer down.
        progress: paced reads and where a long read stands; stored with every record.
        say: tells a person how a long read gets on.
        zone: whose night is meant.
        strangers: ids that came with another fingerprint than the ledger knows.
        planned: what the cycle asks beside the ids that it asks for anyway.
        spare_calls: how many more it may make.
    """

    client: SteveClient
    capabilities: Capabilities
    known: KnownSessions
    record: Recorder
    progress: ReadingProgress
    say: Callable[[str], None]
    zone: tzinfo = UTC
    strangers: set[int] = field(default_factory=set)
    planned: frozenset[str] = frozenset()
    spare_calls: int = 0
    _calls_before: int = 0
    _charged_s: float | None = None

    # -- the two lanes -------------------------------------------------------------------------------

    def cycle(self) -> None:
        """A full cycle: everything that may be new or changed; at first contact the whole history."""
        if not self.progress.get("backfilled_at"):
            self._backfill()
        self._calls_before, self._charged_s = self.client.calls, self.client.busy_s
        highest = self.known.highest_id()
        may_be_late = LOOK_AHEAD if self.capabilities.id_lists else LATE_SINGLES
        self.progress.setdefault("crossed_to", max(highest - may_be_late, 0))
        self._forget_seen(highest)
        is_rested = self._is_rested()
        if self.capabilities.id_lists:
            self._ask_lists(highest, is_rested=is_rested)
        else:
            self._ask_singles(is_rested=is_rested)
        if "active" in self.planned:
            self._read_active()
        if "window" in self.planned:
            self._read_window()
        crossed = self._cross_gaps(highest)
        if is_rested and not crossed:
            self._recheck_stops()
        self._read_again()
        self.settle_strangers()

    def watch(self) -> None:
        """Between cycles: what is open, and the next ids; one cheap call where a call carries a list."""
        if not self.progress.get("backfilled_at"):
            return
        open_ids = self.known.open_ids(stuck=False)
        if self.capabilities.id_lists:
            unseen = self._unseen_ids(UNSEEN_ALONG) if "unseen" in self.progress else []
            others = [*unseen, *self._next_ids(LOOK_AHEAD)]
            size = MOST_IDS_PER_CALL - len(others)
            if len(open_ids) > size:
                open_ids = self._next_portion("watched_after", open_ids, size)
            self._ask(open_ids + others)
        elif len(open_ids) <= WATCHED_SINGLES:
            self._ask(open_ids + self._next_ids(1))
        else:
            if self._is_due("active"):
                self._read_active()
            self._ask(self._next_ids(1))

    def settle_strangers(self) -> None:
        """Others came under known numbers: where StEvE was restored, ask for them again, and record them."""
        strangers = self.strangers
        if not strangers:
            return
        last = self._identity().last_in_backup(strangers, self._instant("recognised_at"))
        if last is None:
            return
        self._rewind(last)
        self.strangers = set()
        self._read_on()
        self._ask(sorted(strangers))
        most = MOST_IDS_PER_CALL if self.capabilities.id_lists else GAP_SINGLES
        self._ask(self.known.vanished_at_the_end(most))

    def is_still_itself(self) -> bool:
        """Whether the last known session is still what it was: one more call, before news are taken in."""
        return self._identity().is_intact()

    # -- by id -----------------------------------------------------------------------------------------

    def _next_ids(self, number: int) -> list[int]:
        highest = self.known.highest_id()
        return list(range(highest + 1, highest + 1 + number))

    def _ask_lists(self, highest: int, *, is_rested: bool) -> None:
        """The last known ids, open sessions, the next ids and those in new gaps: one call, or a few.

        Where very many are open, the active list shows in one call which of them are not any more; while
        it rests, they are asked for in turn.
        """
        latest = self.known.latest_ids(IDENTITY_SAMPLE)
        others = [number for number in self.known.open_ids(stuck=False) if number not in latest]
        unseen = first_ids(self.progress["unseen"], UNSEEN_ALONG)
        probes = [*self.known.vanished_at_the_end(LOOK_AHEAD), *unseen, *self._next_ids(LOOK_AHEAD)]
        always = len(latest) + len(probes)
        calls = -(-(always + len(others)) // MOST_IDS_PER_CALL)
        by_active_list = calls > MOST_CALLS_BY_ID and is_rested and self._is_due("active")
        if calls > MOST_CALLS_BY_ID:
            calls = 1 if by_active_list else MOST_CALLS - 1
            others = self._next_portion("open_after", others, calls * MOST_IDS_PER_CALL - always)
        self._plan(MOST_CALLS - calls, is_rested=is_rested, active_first=by_active_list)
        first = MOST_IDS_PER_CALL - len(latest)
        batch, rest = [*latest, *[*probes, *others][:first]], [*probes, *others][first:]
        answer = self.client.transactions(ids=batch)
        if latest and not self._is_itself(latest, answer):
            highest = self.known.highest_id()
            rest = [*self.known.open_ids(stuck=False), *self._next_ids(LOOK_AHEAD)]
        else:
            self._take(batch, answer)
        self._ask(rest)
        if self.known.highest_id() > highest:
            self._read_on()

    def _ask_singles(self, *, is_rested: bool) -> None:
        """The last known id and the next one; open sessions are asked for when they left the active list.

        While that list rests, as many of them as calls are left, in turn.
        """
        latest = self.known.latest_ids(1)
        vanished = self.known.vanished_at_the_end(1)
        self._plan(
            MOST_CALLS - len(latest), is_rested=is_rested, active_first=True, has_vanished=bool(vanished)
        )
        restored = False
        if latest:
            answer = self.client.transactions(ids=latest)
            restored = not self._is_itself(latest, answer)
            if not restored:
                self._take(latest, answer)
        if "vanished" in self.planned:
            self._ask(vanished)
        if restored or "next" in self.planned:
            self._probe_next()
        if "active" not in self.planned and self.spare_calls:
            open_ids = self._next_portion("open_after", self.known.open_ids(stuck=False), self.spare_calls)
            self.spare_calls -= len(open_ids)
            self._ask(open_ids)

    def _read_on(self) -> None:
        """What comes after the highest id, until nothing more does."""
        if not self.capabilities.id_lists:
            self._probe_next()
            return
        highest = -1
        while self.known.highest_id() > highest:
            highest = self.known.highest_id()
            self._ask(self._next_ids(MOST_IDS_PER_CALL))

    def _probe_next(self) -> None:
        # Counted here: a row that cannot be read is shown, and is not the highest that is known.
        (number,) = self._next_ids(1)
        while self._ask([number]):
            number += 1

    def _next_portion(self, name: Round, ids: Sequence[int], size: int) -> list[int]:
        """So many of these ids, in turn from cycle to cycle."""
        chosen = portion(ids, int(self.progress.get(name, 0)), size)
        if chosen:
            self.progress[name] = chosen[-1]
        return chosen

    # -- what a cycle may ask --------------------------------------------------------------------------

    def _plan(self, calls: int, *, is_rested: bool, active_first: bool, has_vanished: bool = False) -> None:
        """Choose what is asked beside the last known ids: so many calls, what is most overdue first.

        The cycle that reads the history of the night again, the first one of most days, asks for it all.

        Args:
            calls: how many.
            is_rested: whether what makes StEvE work hard may be asked.
            active_first: nothing comes before the active list.
            has_vanished: whether an id at the end is gone, and might be given out anew.
        """
        wishes = self._wishes(is_rested=is_rested, has_vanished=has_vanished)
        first = ["active"] if active_first and calls > 0 and wishes[:1] and wishes[0].name == "active" else []
        wishes = wishes[len(first) :]
        if night_is_due(self.progress, self.zone):  # that cycle asks for everything
            calls = len(first) + len(wishes) + EVIDENCE_PER_NIGHT
        granted = [*first, *plan_calls(wishes, calls - len(first))]
        now = clock.now().isoformat()
        noted: tuple[tuple[str, Light], ...] = (
            ("next", "next"),
            ("vanished", "vanished"),
            ("unseen", "unseen_asked"),
            ("evidence", "evidence_again"),
        )
        for name, key in noted:
            if name in granted:
                self.progress[key] = {"at": now}
        self.planned, self.spare_calls = frozenset(granted), calls - len(granted)

    def _wishes(self, *, is_rested: bool, has_vanished: bool) -> list[Wish]:
        """What there is to ask, the most important first."""
        slow = [
            Wish(kind, self._last(kind)) for kind in ("active", "window") if is_rested and self._is_due(kind)
        ]
        singles = [] if self.capabilities.id_lists else [Wish("next", self._last("next"))]
        rare = []
        if has_vanished:
            rare.append(Wish("vanished", self._last("vanished"), VANISHED_EVERY))
        if is_rested and self._tags_are_old():
            rare.append(Wish("tags", self._last("tags"), TAGS_EVERY))
        if len(self.progress["unseen"]) > (UNSEEN_ALONG if self.capabilities.id_lists else 0):
            rare.append(Wish("unseen", self._last("unseen_asked")))
        if is_rested and self.capabilities.details:
            # What was never looked at again was looked at when the history was read.
            last = self._last("evidence_again") or self._instant("backfilled_at")
            rare.append(Wish("evidence", last, EVIDENCE_EVERY))
        return [*slow, *singles, *rare]

    def _tags_are_old(self) -> bool:
        """Whether StEvE's list of tags was read so long ago that it is due."""
        last = self._last("tags")
        return last is None or clock.now() >= last + TAGS_EVERY

    def evidence_calls(self) -> int:
        """Calls that this cycle may make to look again at evidence that is known, each for one session."""
        return self.spare_calls + 1 if "evidence" in self.planned else 0

    def _last(self, kind: Asked) -> datetime | None:
        """When it was asked last; None = never, or at a time that only a wrong clock could name."""
        at = datetime.fromisoformat(self.progress[kind]["at"]) if kind in self.progress else None
        return None if at is None or at > clock.now() else at

    def _instant(self, key: Literal["backfilled_at", "recognised_at"]) -> datetime | None:
        given = self.progress.get(key)
        return None if given is None else min(datetime.fromisoformat(given), clock.now())

    def _is_rested(self) -> bool:
        """Whether StEvE's time that all earlier cycles took has been made up for."""
        until, now = self.progress.get("rests_until"), clock.now()
        # One further away than any cycle can bring about was written by a clock that was wrong.
        return until is None or not now < datetime.fromisoformat(until) < now + LONGEST_REST

    def charge(self) -> None:
        """Put StEvE's time that this cycle took since the last call of this down to be made up for."""
        if self._charged_s is None:
            return
        took = REST_FACTOR * timedelta(seconds=self.client.busy_s - self._charged_s)
        self._charged_s = self.client.busy_s
        until = self.progress.get("rests_until")
        begins_at = clock.now() if until is None or self._is_rested() else datetime.fromisoformat(until)
        self.progress["rests_until"] = (begins_at + took).isoformat()

    def record_paced(
        self, answer: TransactionsAnswer, *, gone: Sequence[int], progress: ReadingProgress
    ) -> Sequence[int]:
        """Record an answer, also one that others asked for in this cycle, with StEvE's time that it took."""
        self.charge()
        strangers = self.record(answer, gone=gone, progress=progress)
        self.strangers.update(strangers)
        return strangers

    def _ask(self, ids: Sequence[int]) -> int:
        """Read ids; known ones that StEvE no longer shows are marked as gone. Returns how many it showed."""
        return sum(self._take(batch, self.client.transactions(ids=batch)) for batch in self._batches(ids))

    def _batches(self, ids: Sequence[int]) -> Iterator[list[int]]:
        return id_batches(ids, id_lists=self.capabilities.id_lists)

    def _take(self, asked: Sequence[int], answer: TransactionsAnswer) -> int:
        """Record the answer to a question for ids. Returns how many of them StEvE showed."""
        missing = set(asked) - {row.steve_id for row in answer.rows}
        missing -= {row.steve_id for row in answer.malformed if row.steve_id is not None}
        if unseen := self.progress.get("unseen"):
            self.progress["unseen"] = after_answer(unseen, asked, set(asked) - missing, clock.now())
        gone = sorted(self.known.still_there(sorted(missing))) if missing else []
        self._record(answer, gone=gone)
        return len(answer.rows) + len(answer.malformed)

    def _record(self, answer: TransactionsAnswer, *, gone: Sequence[int] = ()) -> None:
        self.record_paced(answer, gone=gone, progress=self.progress)

    # -- is it still the same StEvE? (steve/identity.py judges) ----------------------------------------

    def _is_itself(self, latest: Sequence[int], answer: TransactionsAnswer) -> bool:
        """Whether the last known ids still mean what they meant; if not, what became of them is recorded."""
        verdict = self._identity().judge(latest, answer, self._instant("recognised_at"))
        if verdict.last_in_backup is not None:
            self._rewind(verdict.last_in_backup)
            return False
        if verdict.deleted:
            what = "deleted in StEvE with their tag or charge box"
            self.say(f"The last known sessions were {what}; others are there.")
            self._ask(verdict.deleted if self.capabilities.id_lists else verdict.deleted[-GAP_SINGLES:])
        if verdict.is_sure:
            self.progress["recognised_at"] = clock.now().isoformat()
        if verdict.looked_closer is not None:
            self._take(*verdict.looked_closer)
        return True

    def _rewind(self, last: int) -> None:
        """StEvE was restored: ids after the last one that its backup had mean new sessions from now on."""
        gone = self.known.ids_above(last)
        now = clock.now().isoformat()
        self.progress["restored"] = {"after": last, "at": now}
        self.progress["recognised_at"] = now
        self.progress["crossed_to"] = min(int(self.progress.get("crossed_to", last)), last)
        self.record(NOTHING, gone=gone, progress=self.progress, rewind_to=last)
        self.say(
            f"StEvE was restored from a backup: {last} is the last transaction that is still there, "
            f"{len(gone)} after it are not. They stay in the ledger; ids after {last} are new sessions."
        )

    def _identity(self) -> Identity:
        return Identity(self.client, self.known, self.capabilities.id_lists)

    # -- by list, paced ------------------------------------------------------------------------------

    def _read_active(self) -> None:
        """The active list: running sessions beyond any hole, and what is no longer on it has stopped.

        Stuck sessions are on it, too, until they stop after all; only then are they asked for.
        """
        before = {*self.known.open_ids(stuck=False), *self.known.open_ids(stuck=True)}
        answer = self._timed("active", lambda: self.client.transactions(type="ACTIVE"))
        self._record(answer)
        listed = {row.steve_id for row in answer.rows} | {row.steve_id for row in answer.malformed}
        self._ask(sorted(before - listed))

    def _read_window(self) -> None:
        """What started (or, on 3.8 and 3.9, stopped) lately: also beyond a hole, also already finished.

        In one call, but in pieces of time where so many sessions are of these days that one answer would
        take much memory.
        """
        now, before = clock.now(), self.client.busy_s
        pieces = max(1, -(-self.progress.get("window_rows", 0) // MOST_WINDOW_ROWS))
        edges = [now - WINDOW + piece * WINDOW / pieces for piece in range(pieces)]
        rows = 0
        for start, end in pairwise([*edges, now + WINDOW_AHEAD]):
            answer = self._window(start, end)
            rows += len(answer.rows)
            if end > now:
                took_s = round(self.client.busy_s - before, 3)
                self.progress["window"] = {"at": clock.now().isoformat(), "took_s": took_s}
                self.progress["window_rows"] = rows
            self._record(answer)

    def _window(self, from_: datetime, to: datetime) -> TransactionsAnswer:
        """A window by what this release compares; never all types where that returns the whole history."""
        return self.client.transactions(type=self.capabilities.window_type, from_=from_, to=to)

    def _is_due(self, kind: Literal["active", "window"]) -> bool:
        return is_made_up_for(self.progress.get(kind), clock.now())

    def _timed(self, kind: Literal["active"], call: Callable[[], TransactionsAnswer]) -> TransactionsAnswer:
        before = self.client.busy_s
        answer = call()
        took_s = self.client.busy_s - before
        self.progress[kind] = {"at": clock.now().isoformat(), "took_s": round(took_s, 3)}
        return answer

    # -- holes -----------------------------------------------------------------------------------------

    def _cross_gaps(self, highest: int) -> bool:
        """Ask for ids that nothing has shown yet, in gaps that opened since gaps were crossed last.

        By this cycle, by the watch, or by a cycle that was cut off. A narrow gap is asked for whole. Of a
        wide one only the edges are, as many as this cycle's calls allow and the others in the next ones:
        chargers that were offline put their sessions right after the last one and right before the next; the
        nightly reads do the rest. What is not shown now is asked for again: it may only be late.

        Args:
            highest: the highest id when this cycle began.

        Returns:
            Whether a wide gap was crossed.
        """
        if (
            self.known.highest_id() > highest
            and not self.capabilities.id_lists
            and "next" not in self.planned
        ):
            self._probe_next()
        found = self.known.highest_id()
        low = min(int(self.progress["crossed_to"]), found)
        narrow: list[int] = []
        edges: list[int] = []
        for gap in self.known.gaps(low + 1, found) if found > low else ():
            ids = self._worth_asking(gap)
            (edges if gap.width > len(ids) else narrow).extend(ids)
            log.info(
                "gap in the numbering", action="discover.gap", low=gap.low, high=gap.high, asked=len(ids)
            )
        self.progress["crossed_to"] = found
        most = MOST_UNSEEN if self.capabilities.id_lists else GAP_SINGLES
        noticed = [*narrow, *edges]
        self.progress["unseen"] = with_noticed(self.progress["unseen"], noticed, clock.now(), most=most)
        self._ask(narrow)
        if edges:
            tags = "tags" in self.planned or self.known.unknown_tags()
            self._ask_unseen(MOST_CALLS_AT_A_HOLE - (self.client.calls - self._calls_before) - tags)
        elif "unseen" in self.planned:
            calls, self.spare_calls = 1 + self.spare_calls, 0
            self._ask_unseen(calls)
        return bool(edges)

    def _ask_unseen(self, calls: int) -> None:
        """Ids in new gaps, as many as so many calls carry; the others wait, those of a failed call, too."""
        ids_per_call = MOST_IDS_PER_CALL if self.capabilities.id_lists else 1
        self._ask(first_ids(self.progress["unseen"], calls * ids_per_call))

    def _unseen_ids(self, number: int) -> list[int]:
        """So many ids in new gaps that the ledger does not have, for the watch, which notes nothing down."""
        crossed_to, highest = int(self.progress["crossed_to"]), self.known.highest_id()
        gaps = self.known.gaps(crossed_to + 1, highest) if highest > crossed_to else ()
        waiting = [each for each, _ in self.progress["unseen"]]
        seen = self.known.fingerprints(waiting) if waiting else {}
        ids = [each for gap in gaps for each in self._worth_asking(gap)]
        return [*ids, *(each for each in waiting if each not in seen)][:number]

    def _forget_seen(self, highest: int) -> None:
        """Of ids in new gaps, drop what has come otherwise, and what a rewind has put above all others."""
        unseen = self.progress.get("unseen", [])
        seen = self.known.fingerprints([number for number, _ in unseen]) if unseen else {}
        self.progress["unseen"] = [each for each in unseen if each[0] <= highest and each[0] not in seen]

    def _worth_asking(self, gap: Gap) -> list[int]:
        """All of a narrow gap; of a wide one the ids nearest to its edges, the nearest ones first."""
        edge = LOOK_AHEAD if self.capabilities.id_lists else EDGE_SINGLES
        if gap.width <= 2 * edge:
            return list(range(gap.low, gap.high + 1))
        return [number for near in range(edge) for number in (gap.high - near, gap.low + near)]

    def _recheck_stops(self) -> None:
        """Stops that may still change are read again, a portion per cycle, round and round."""
        if self.capabilities.window_basis == "stop" and self.progress.get("window"):
            stopped_since = END  # the window on stops has just shown them all
        else:
            stopped_since = clock.now() - STOPS_CHANGE_FOR
        limit = MOST_IDS_PER_CALL if self.capabilities.id_lists else RECHECKED_SINGLES
        ids_after = partial(
            self.known.ids_to_recheck,
            stopped_since=stopped_since,
            manual_since=clock.now() - MANUAL_STOPS_CHANGE_FOR,
            history_until=datetime.fromisoformat(self.progress["backfilled_at"]),
            limit=limit,
        )
        # What is not asked for is not noted down, so a round that has just ended begins anew at once.
        after = int(self.progress.get("recheck_after", 0))
        ids = ids_after(after)
        if after and not ids:
            ids = ids_after(0)
        self.progress["recheck_after"] = ids[-1] if len(ids) == limit else 0
        self._ask(ids)

    # -- the whole history -----------------------------------------------------------------------------

    def _backfill(self) -> None:
        """Read the whole history, newest first, resumable after each window.

        Newest first: when a session with a reset clock turns up, the sessions around its id are known.
        """
        latest = self._identity().last_known()
        if latest:  # it broke off: does it go on with the StEvE that it began with?
            self._is_itself(
                latest, self.client.transactions_by_id(latest, id_lists=self.capabilities.id_lists)
            )
        if "backfill" not in self.progress:
            self._read_active()
        self._read_windows("backfill", EARLIEST)
        self._fill_gaps_of_history()
        self.progress["window_rows"] = len(
            self.known.stopped_between(
                clock.now() - WINDOW, END, by_stop=self.capabilities.window_basis == "stop"
            )
        )
        self.progress["backfilled_at"] = self.progress["complete_at"] = clock.now().isoformat()
        self.progress["night"] = night_of(clock.now(), self.zone)

    def _read_again(self) -> None:
        """Each night the last weeks, each month everything: what slipped through is found, what is gone, too.

        Both belong to the first cycle of a night (:func:`night_of`), when StEvE has time, and go on where
        they were interrupted.
        """
        if night_is_due(self.progress, self.zone):
            night = night_of(clock.now(), self.zone)
            self._charged_s = None  # at night StEvE has time
            complete_at = datetime.fromisoformat(self.progress["complete_at"])
            if abs(clock.now() - complete_at) >= COMPLETE_EVERY:
                self._read_windows("complete", EARLIEST, verify=True)
                self.progress["complete_at"] = clock.now().isoformat()
            else:
                self._read_windows("nightly", clock.now() - NIGHTLY_REACH, verify=True)
            self._ask_gaps_of_the_night()
            self.progress["night"] = night
            self.record(NOTHING, gone=(), progress=self.progress)
            self._charged_s = self.client.busy_s

    def _read_windows(self, name: LongRead, beginning: datetime, *, verify: bool = False) -> None:
        """Read backwards from the future to ``beginning``, in windows as wide as bring enough rows.

        StEvE numbers sessions from 1, so there are no more than its highest number: once what can be left
        fits into one answer, the rest of time is one window.

        Args:
            name: under which the progress is kept; an interrupted read goes on where it was.
            beginning: where to end.
            verify: ask by id for what the ledger has in a window and StEvE did not show there.
        """
        at_first: Windows = {
            "before": END.isoformat(),
            "from": (clock.now() - FIRST_WIDTH).isoformat(),
            "width_s": int(FIRST_WIDTH.total_seconds()),
            "rows": 0,
        }
        state = self.progress.setdefault(name, at_first)
        while (before := datetime.fromisoformat(state["before"])) > beginning:
            start = max(datetime.fromisoformat(state["from"]), beginning)
            answer = self._window(start, before)
            width = timedelta(seconds=state["width_s"])
            if len(answer.rows) < BACKFILL_ROWS // 2:
                width *= 2
            elif len(answer.rows) > BACKFILL_ROWS * 2:
                width = max(width / 2, NARROWEST)
            rows = state["rows"] + len(answer.rows)
            if 0 < self._highest_of(answer) <= rows + BACKFILL_ROWS:
                width = start - EARLIEST
            state |= {
                "before": start.isoformat(),
                "from": (start - min(width, start - EARLIEST)).isoformat(),
                "width_s": int(width.total_seconds()),
                "rows": rows,
            }
            self._record(answer)
            self.say(f"{name}: read back to {start:%Y-%m-%d}, {state['rows']:,} sessions")
            if verify:
                self._verify_window(start, before, answer)
        del self.progress[name]

    def _highest_of(self, answer: TransactionsAnswer) -> int:
        """The highest id known with this answer; 0 when there is none."""
        return max([self.known.highest_id(), *(row.steve_id for row in answer.rows)])

    def _verify_window(self, start: datetime, before: datetime, answer: TransactionsAnswer) -> None:
        """What the ledger has in a window and StEvE did not show: gone, or changed meanwhile."""
        expected = self.known.stopped_between(start, before, by_stop=self.capabilities.window_basis == "stop")
        missing = sorted(set(expected) - {row.steve_id for row in answer.rows})
        self._ask(missing if self.capabilities.id_lists else missing[:GAP_SINGLES])

    def _ask_gaps_of_the_night(self) -> None:
        """Ids that nothing has ever shown, a portion each night: a wide hole may hide old sessions."""
        highest = self.known.highest_id()
        budget = GAP_IDS_PER_NIGHT if self.capabilities.id_lists else GAP_SINGLES
        low = int(self.progress.get("gaps_after", 0)) + 1
        ids: list[int] = []
        for gap in self.known.gaps(low, highest):
            ids += range(gap.low, min(gap.high, gap.low + budget - len(ids) - 1) + 1)
            if len(ids) >= budget:
                break
        self._ask(ids)
        self.progress["gaps_after"] = ids[-1] if len(ids) >= budget else 0

    def _fill_gaps_of_history(self) -> None:
        """Ids that no window showed: deleted, never used, or with a start that StEvE lost (3.7)."""
        gaps = self.known.gaps(1, self.known.highest_id())
        if self.capabilities.id_lists:
            ids = [number for gap in gaps for number in self._worth_asking(gap)]
        else:
            ids = [
                number for gap in gaps if gap.width <= GAP_SINGLES for number in range(gap.low, gap.high + 1)
            ]
            ids = ids[-GAP_SINGLES:]
        self._ask(ids)
