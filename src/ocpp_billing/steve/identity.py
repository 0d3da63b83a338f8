"""Is what answers still the StEvE that the ledger has read, was it restored, or is it another one?

Asks StEvE and the ledger, and judges; what follows from it is done by :mod:`ocpp_billing.steve.discovery`,
before anything new is recorded. Sessions that are not there any more prove little: their tag may have been
deleted. Another session under a known number does, and so does a StEvE that shows none of the last few
although it still has their tags and charge boxes.

A backup cuts off the end of the numbering: what is still there proves that nothing before it was lost. That
holds for what the ledger knows from before the backup was played back, not for what has begun since.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ocpp_billing.steve.client import MOST_IDS_PER_CALL
from ocpp_billing.steve.wire import TransactionsAnswer, fingerprint

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from ocpp_billing.charging.known import KnownSessions
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.wire import Transaction

# The highest known ids are read again in every cycle: are they still who they were?
IDENTITY_SAMPLE: Final = 5
# Spread over the whole history, when the last ones are not there any more.
SPREAD_SAMPLE: Final = 100
SPREAD_SINGLES: Final = 10


class AnotherSteveError(Exception):
    """What answers at STEVE_API_URL is not the StEvE that this ledger has read so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the last known sessions.

    Attributes:
        last_in_backup: StEvE was restored, and this is the last known id that is still what it was; None =
            it was not restored.
        is_sure: what is not gone is as it was.
        deleted: ids that may be gone with the last ones' tags or charge boxes.
        looked_closer: more ids than those given were asked for, with this answer.
    """

    last_in_backup: int | None = None
    is_sure: bool = False
    deleted: Sequence[int] = ()
    looked_closer: tuple[Sequence[int], TransactionsAnswer] | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Compares a StEvE with what the ledger knows of it; records nothing.

    Attributes:
        client: asks StEvE.
        known: what the ledger knows.
        id_lists: whether a call carries a list of ids.
    """

    client: SteveClient
    known: KnownSessions
    id_lists: bool

    def last_known(self) -> list[int]:
        """The last known ids, highest first: as many as one call can ask for."""
        return self.known.latest_ids(IDENTITY_SAMPLE if self.id_lists else 1)

    def is_intact(self) -> bool:
        """Whether the very last known session is still what it was, or nothing can be said about it.

        Were new sessions recorded while it is not, they could not be told from those that were known before,
        and would seem to prove that nothing was lost.
        """
        latest = self.last_known()
        answer = self._read(latest)
        unreadable = {row.steve_id for row in answer.malformed}
        told = next((number for number in latest if number not in unreadable), None)
        return told is None or told in self._matching(latest, answer.rows)

    def judge(self, latest: Sequence[int], answer: TransactionsAnswer, sure_at: datetime | None) -> Verdict:
        """What became of the last known ids.

        Args:
            latest: the last known ids, highest first.
            answer: what StEvE says to them, and perhaps to others.
            sure_at: when they were last found to be as they were.

        Raises:
            AnotherSteveError: when no known session is there.
        """
        known = self.known.fingerprints(latest)
        matching = self._matching(latest, answer.rows)
        others = [row.steve_id for row in answer.rows if row.steve_id in known.keys() - matching]
        if others:
            return Verdict(last_in_backup=self.last_in_backup(others, sure_at))
        if matching or any(row.steve_id in known for row in answer.malformed):
            return Verdict(is_sure=True)
        more = self.known.latest_ids(IDENTITY_SAMPLE)
        if len(more) > len(latest):
            closer = self._read(more)
            return replace(self.judge(more, closer, sure_at), looked_closer=(more, closer))
        deleted = self._deleted_with_tag_or_box(latest)
        if deleted:
            return Verdict(is_sure=True, deleted=deleted)
        return Verdict(last_in_backup=self._last_before(min(latest)))

    def last_in_backup(self, strangers: Collection[int], sure_at: datetime | None) -> int | None:
        """The last id that is still what it was, where StEvE was restored; None where it was not.

        It was not where a later session is still what it was, if that is known for longer than others can
        have had these numbers: since before all was well the last time; and where StEvE was seen without
        one of the numbers, since before that. What came later may have begun after the backup was played
        back.

        Args:
            strangers: known numbers under which other sessions are shown.
            sure_at: when the last known ids were last found to be as they were.

        Raises:
            AnotherSteveError: when no known session is there.
        """
        lowest = min(strangers)
        since = (sure_at, self.known.vanished_since(strangers))
        before = min((at for at in since if at is not None), default=None)
        later = self.known.ids_above(lowest - 1, seen_before=before)[-IDENTITY_SAMPLE:]
        if later and self._ask(later):
            return None
        return self._last_before(lowest)

    def _last_before(self, below: int) -> int:
        """Ids from ``below`` on are not what they were: the last one before that still is.

        Restored from a backup, StEvE gives out ids anew after the last one that the backup had. Those are
        new sessions; ours of the same ids stay in the ledger as they are. Where nothing at all matches,
        it is another server (a staging address, an empty database), and nothing of it is recorded.
        """
        sample = self.known.sample_ids(SPREAD_SAMPLE if self.id_lists else SPREAD_SINGLES, below)
        matching = self._ask(sample)
        if not matching:
            raise AnotherSteveError(
                "STEVE_API_URL answers as another StEvE: none of the sessions read so far is there. Put the "
                "right address back. If StEvE was set up anew, give it a STEVE_SOURCE of its own."
            )
        return self._last_matching(max(matching), below)

    def _deleted_with_tag_or_box(self, latest: Sequence[int]) -> list[int]:
        """What is gone when the last known sessions were deleted with their tags or charge boxes; else none.

        With a tag or a charge box StEvE deletes its transactions, old and new, and no others; a backup that
        was played back cuts off the end of everybody's. Where neither is proved, one tag or one charge box
        is taken to have been deleted: if StEvE was restored after all, that shows as soon as it gives one of
        these numbers to another session, before that one is recorded.
        """
        lost = self.known.origins(latest)
        firsts = {number for each in lost for number in (each.first_of_tag, each.first_of_box)}
        spread = SPREAD_SAMPLE if self.id_lists else SPREAD_SINGLES
        asked = {*self.known.sample_ids(spread, min(latest)), *firsts} - set(latest)
        there = self._ask(sorted(asked)) if asked else set()
        if not there:
            return []
        last, present = max(there), self.known.origins(sorted(there))
        tags, boxes = {each.tag for each in present}, {each.box for each in present}
        unproved = []
        for each in lost:
            if each.tag in tags and each.box in boxes:
                return []
            tag_deleted = each.tag not in tags and each.first_of_tag < last
            box_deleted = each.box not in boxes and each.first_of_box < last
            if not (tag_deleted or box_deleted):
                unproved.append(each)
        one_tag = len({each.tag for each in unproved}) <= 1 and not any(each.tag in tags for each in unproved)
        one_box = len({each.box for each in unproved}) <= 1 and not any(
            each.box in boxes for each in unproved
        )
        if not (one_tag or one_box):
            return []
        others = self.known.latest_ids(
            IDENTITY_SAMPLE,
            beside_tags={each.tag for each in lost} - tags,
            beside_boxes={each.box for each in lost} - boxes,
        )
        matching = self._ask(others)
        if not matching:
            return []
        return self.known.ids_above(max(matching))

    def _last_matching(self, at_least: int, below: int) -> int:
        """The highest known id below one that still matches: by halving, from one that does."""
        candidates = [at_least, *(number for number in self.known.ids_above(at_least) if number < below)]
        step = MOST_IDS_PER_CALL if self.id_lists else 1
        low, high = 0, len(candidates)
        while high - low > step:
            middle = (low + high) // 2
            if self._ask(candidates[middle : middle + (IDENTITY_SAMPLE if step > 1 else 1)]):
                low = middle
            else:
                high = middle
        return max(self._ask(candidates[low:high]) | {at_least})

    def _matching(self, ids: Sequence[int], shown: Sequence[Transaction]) -> set[int]:
        """Which of these known ids StEvE shows with the fingerprint that the ledger knows."""
        known = self.known.fingerprints(ids)
        return {row.steve_id for row in shown if known.get(row.steve_id) == fingerprint(row)}

    def _ask(self, ids: Sequence[int]) -> set[int]:
        """The same, asked now."""
        return self._matching(ids, self._read(ids).rows)

    def _read(self, ids: Sequence[int]) -> TransactionsAnswer:
        return self.client.transactions_by_id(ids, id_lists=self.id_lists)
