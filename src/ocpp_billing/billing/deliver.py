"""Step 4, deliver: claimed usage events go to Lago, and what became of each is written down.

Nothing here decides whether an event was stored by anything but Lago's word: an answer that leaves it
open puts the event back into the queue, with the same bytes, to be read back before it is sent again.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from django.db import connections

from ocpp_billing import clock
from ocpp_billing.billing.late import MISSING_FOR, InvoicedPeriods
from ocpp_billing.billing.outbox import (
    FIRST_BACKOFF,
    LEASE,
    LONGEST_BACKOFF,
    ClaimedEvent,
    Contract,
    EventResult,
    claim_attempted_unbilled,
    claim_events,
    claim_in_doubt,
    customers_to_ask,
    give_up_events,
    last_taken_at,
    next_due_at,
    note_taken,
    plans_of_due,
    put_off_looks,
    record_results,
    set_aside_unbilled,
)
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.lago import errors
from ocpp_billing.lago.delivery import (
    SHOWN_WITHIN,
    Accepted,
    Outcome,
    RateLimited,
    Refused,
    Rejected,
    Unauthorised,
    Unknown,
)
from ocpp_billing.lago.errors import LagoError
from ocpp_billing.lago.wire import MAX_BATCH_EVENTS, events_equal
from ocpp_billing.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from ocpp_billing.database import Fence
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.directory import LagoDirectory

log = get_logger(__name__)

# An id that Lago calls taken and does not show is looked for so long, then a person has to look.
SETTLE_UNSEEN = timedelta(minutes=2)
# Lago is ill when so many events in a row get no clear answer by themselves: no more batches are taken apart.
ILL_ALONE = 3
# ... and when so many requests in a row do: nothing more is sent in this run.
ILL = 12
# What was claimed and not sent, because Lago seemed ill, waits no longer than that.
LONGEST_REST = timedelta(minutes=1)
# So many times in a row Lago is asked in vain for what it holds. What it said nothing about waits that long.
LOOKS_IN_VAIN = 3
LOOKED_FOR_AGAIN = timedelta(minutes=15)
# After a rate limit that names no time.
RATE_LIMITED_FOR = timedelta(seconds=5)
# What Lago does not hold and could still bill is looked at again, the later the older it is.
LOOK_AGAIN_FRACTION = 8
LONGEST_LOOK_AGAIN = timedelta(hours=6)


@dataclass(slots=True)
class DeliverCounts:
    """What became of usage events in this run."""

    accepted: int = 0
    rejected: int = 0
    held: int = 0
    unknown: int = 0
    given_up: int = 0


@dataclass(slots=True)
class Courier:
    """Delivers the queue of one source.

    Attributes:
        client: Lago.
        directory: Lago's subscriptions, to check the billing period at the claim.
        redecide: decides sessions anew whose event the closing of a period took out of the queue.
        fence: the run.
        events_store: of Lago, as far as it says (from v1.47 on).
        events_per_second: pace; 0 = as fast as Lago takes them.
        concurrency: how many batches may be under way.
        patience: how long this run waits for events that have to be tried again.
        batch_size: events in a batch; smaller once Lago, or a proxy before it, found one too large.
        stopped: why nothing more is sent in this run; None = all is well.
        unauthorised: Lago refused the key.
        trouble: why Lago could not be asked for something that it holds; what needed no answer was sent.
    """

    client: LagoClient
    directory: LagoDirectory
    source: str
    redecide: Callable[[], object]
    fence: Fence | None
    events_store: str | None = None
    events_per_second: int = 0
    concurrency: int = 1
    patience: timedelta = timedelta(seconds=15)
    batch_size: int = MAX_BATCH_EVENTS
    counts: DeliverCounts = field(default_factory=DeliverCounts)
    stopped: str | None = None
    unauthorised: bool = False
    trouble: LagoError | None = None
    _contract: Contract = field(default_factory=lambda: Contract("", None, frozenset()))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next_send_at: datetime | None = None
    # How many requests in a row got no clear answer in this run, and how many of those held one event.
    _failed: int = 0
    _failed_alone: int = 0
    # How often in a row Lago could not be asked for what it holds.
    _in_vain: int = 0
    _taken_at: datetime | None = None
    _took_any: bool = False
    _gave_ids: bool = False

    def deliver(self) -> DeliverCounts:
        """Send what is due, until nothing is left that can be sent now.

        Raises:
            LagoError: when Lago cannot be asked about billing periods.
            FenceError: when another worker has taken over.
        """
        self._taken_at = last_taken_at(self.source)
        self._deliver(clock.now() + self.patience)
        if self._took_any and self._taken_at is not None:
            note_taken(self.source, self._taken_at, self.fence)
        return self.counts

    def _deliver(self, give_up_at: datetime) -> None:
        while self.stopped is None:
            self._check_what_is_billed()
            looked = self._look_for_what_is_in_doubt()
            if self._send_all_claimable() or looked:
                continue
            due_at = next_due_at(self.source)
            if self.stopped is not None or due_at is None or due_at > give_up_at:
                break
            wait = due_at - clock.now()
            if wait <= timedelta():
                break
            clock.sleep(wait.total_seconds())

    # -- what Lago bills, once more ------------------------------------------------------------------

    def _check_what_is_billed(self) -> None:
        """Ask Lago where what we know is too old, and take out of the queue what it would not bill."""
        now = clock.now()
        customers = customers_to_ask(self.source, now)
        if customers:
            self.directory.refresh(customers, now)
        charges = self.directory.charges_of_plans(plans_of_due(self.source, clock.now()))
        in_advance = frozenset(code for code, charge in charges.items() if charge.pay_in_advance)
        self._contract = Contract(
            self.directory.metric_code,
            self.directory.field_name,
            frozenset(charges),
            alone=in_advance if in_advance and self.directory.stores_parts_of_batches() else frozenset(),
            bills_repeats=self._bills_repeats(),
        )
        if set_aside_unbilled(self.source, clock.now(), self._contract, self.fence):
            self.redecide()
        if self._settle_all_unbilled():
            self.redecide()

    def _bills_repeats(self) -> bool:
        """Whether Lago may bill an event twice that it gets twice.

        Its ClickHouse store does, unless the organisation has ``clickhouse_deduplication_enabled``, which the
        API does not show. A Lago before v1.47 does not say which store it has; but only PostgreSQL gives an
        event its id at once.
        """
        return self.events_store != "postgres" and not (self.events_store is None and self._gave_ids)

    def _settle_all_unbilled(self) -> int:
        """See how events stand that were attempted and are not to be sent; returns how many were given up."""
        before = self.counts.given_up
        periods = InvoicedPeriods(self.client, self.directory)
        lease = uuid4()
        while self._in_vain < LOOKS_IN_VAIN and (
            claimed := claim_attempted_unbilled(
                self.source, lease, MAX_BATCH_EVENTS, clock.now(), self._contract, self.fence
            )
        ):
            results = self._look_for(claimed, lambda item: self._settle_unbilled(item, periods), lease)
            dead = [result.event_id for result in results if result.state == "void"]
            self._record([result for result in results if result.state != "void"], lease, lock_sessions=True)
            if dead:
                self.counts.given_up += give_up_events(
                    dead,
                    states=["queued", "held"],
                    answer={
                        "outcome": "given up",
                        "says": "Lago never got it and would not bill it any more",
                    },
                    now=clock.now(),
                    fence=self.fence,
                    lease=lease,
                )
        return self.counts.given_up - before

    def _settle_unbilled(self, item: ClaimedEvent, periods: InvoicedPeriods) -> EventResult:
        """An event of unknown outcome that Lago would not bill as it is: what Lago holds decides.

        Sent again it would be accepted and never billed, so what Lago does not hold is held by us: until
        Lago could not bill it any more if it got it now, and was seen twice not to have it. Then it is
        given up (``void``).
        """
        found = self._read_back(item)
        if found is not None:
            return found
        standing = periods.standing_of(item.customer, item.event, item.timestamp)
        now, wait, missing_since = clock.now(), MISSING_FOR, None
        if standing.is_dead:
            missing_since = item.missing_since
            if missing_since is None:
                # It may have come while the invoice was cut: only from now on nothing is counted any more.
                found = self._read_back(item)
                if found is not None:
                    return found
                missing_since = now
            elif now - missing_since >= MISSING_FOR:
                return EventResult(item.event_id, "void", {})
            wait = missing_since + MISSING_FOR - now
        else:
            age = now - item.first_attempt_at
            wait = min(max(age / LOOK_AGAIN_FRACTION, MISSING_FOR), LONGEST_LOOK_AGAIN)
        answer = {
            "outcome": "not found",
            "says": f"Lago does not hold it: {standing.says}",
            "charged_on_arrival": standing.charged_on_arrival,
        }
        return EventResult(
            item.event_id,
            "held",
            answer,
            reason=standing.reason,
            wait=wait,
            missing_since=missing_since,
            sent_at=item.sent_at,
            is_news=not item.is_held,
        )

    # -- what may be there already ---------------------------------------------------------------------

    def _look_for_what_is_in_doubt(self) -> int:
        """Read back some of what Lago may have and would bill twice if it got it again; returns how many."""
        if self._in_vain >= LOOKS_IN_VAIN:
            return 0
        lease = uuid4()
        claimed = claim_in_doubt(
            self.source, lease, MAX_BATCH_EVENTS, clock.now(), self._contract, self.fence
        )
        self._record(
            self._look_for(claimed, lambda item: self._read_back(item) or self._not_shown_yet(item), lease),
            lease,
        )
        return len(claimed)

    def _look_for(
        self,
        items: Sequence[ClaimedEvent],
        look: Callable[[ClaimedEvent], EventResult],
        lease: UUID,
    ) -> list[EventResult]:
        """Ask Lago about each, until it has failed to answer too often in a row; give the rest back."""
        results: list[EventResult] = []
        tried: list[int] = []
        untried: list[int] = []
        for item in items:
            if self._in_vain >= LOOKS_IN_VAIN:
                untried.append(item.event_id)
                continue
            before = self._in_vain
            with self._going_on():
                results.append(look(item))
            if self._in_vain > before:
                tried.append(item.event_id)
        put_off_looks(tried, untried, lease, clock.now() + LOOKED_FOR_AGAIN, self.fence)
        return results

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Ask Lago something without which others can be sent; that it failed is said in the end."""
        try:
            yield
        except (errors.Misconfigured, errors.Unauthorised, errors.Forbidden, errors.WrongAddress):
            raise  # nothing else would fare better
        except LagoError as error:
            self.trouble = self.trouble or error
            self._in_vain += LOOKS_IN_VAIN if isinstance(error, errors.RateLimited) else 1
        else:
            self._in_vain = 0

    def _not_shown_yet(self, item: ClaimedEvent) -> EventResult:
        """It is looked for again, the later the older it is, at the latest when it may be sent again."""
        now = clock.now()
        sent_at = min(item.sent_at or now, now + LEASE)  # later only by a clock that was ahead
        wait = min(max(abs(now - sent_at), FIRST_BACKOFF), max(sent_at + SHOWN_WITHIN - now, timedelta()))
        minutes = int(SHOWN_WITHIN.total_seconds() // 60)
        answer = {
            "outcome": "not shown yet",
            "says": "Lago may have it and not show it yet: unless it does, it is sent again "
            f"{minutes} minutes after it was sent",
            **item.failures.as_answer(),
        }
        return EventResult(item.event_id, "queued", answer, wait=wait, sent_at=sent_at, is_news=False)

    # -- sending -------------------------------------------------------------------------------------

    def _send_all_claimable(self) -> int:
        """Claim and send batches until none is claimable; returns how many events were claimed."""
        if self.concurrency == 1:
            return self._send_batches()
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="deliver") as pool:
            senders = [pool.submit(self._send_in_thread) for _ in range(self.concurrency)]
            return sum(sender.result() for sender in senders)

    def _send_in_thread(self) -> int:
        try:
            return self._send_batches()
        finally:
            connections.close_all()

    def _send_batches(self) -> int:
        claimed = 0
        while self.stopped is None:
            lease = uuid4()
            batch = claim_events(self.source, lease, self.batch_size, clock.now(), self._contract, self.fence)
            if not batch:
                break
            claimed += len(batch)
            self._send_claimed(batch, lease)
        return claimed

    def _send_claimed(self, batch: Sequence[ClaimedEvent], lease: UUID) -> None:
        """Read back what Lago may know already, send the rest."""
        to_send: list[ClaimedEvent] = []
        results: list[EventResult] = []
        for item in batch:
            found = self._known(item) if item.may_be_known else None
            if found is None:
                to_send.append(item)
            else:
                results.append(found)
        apart = [item for item in to_send if item.alone or self._is_tried_alone(item)]
        if together := [item for item in to_send if item not in apart]:
            results += self._send(together)
        results += self._send_apart(apart)
        self._record(results, lease)

    def _known(self, item: ClaimedEvent) -> EventResult | None:
        """What is known of an event before it is sent again; None = Lago does not have it, so send it."""
        is_asked = self._in_vain < LOOKS_IN_VAIN
        if is_asked:
            with self._going_on():
                return self._read_back(item) or self._blamed(item)
        result = self._again(item, "not read back", f"Lago cannot be asked for it: {self.trouble}")
        # What Lago was not asked about comes before that.
        return replace(result, wait=LOOKED_FOR_AGAIN) if is_asked else result

    def _is_tried_alone(self, item: ClaimedEvent) -> bool:
        """Whether an event may be why its batches fail, and those must not be taken apart and sent again."""
        return self._contract.bills_repeats and item.failures.is_suspect

    def _send_apart(self, items: Sequence[ClaimedEvent]) -> list[EventResult]:
        """Send each event by itself, until Lago seems ill: then it is given a rest.

        What an older Lago stores of a batch that it refuses it never charges in advance.
        """
        results: list[EventResult] = []
        is_open = False
        for item in items:
            if self.stopped is not None or is_open:
                why = self.stopped or "what was sent before it is still open"
                results.append(self._again(item, "not sent", why))
                continue
            (result,) = self._send([item])
            results.append(result)
            met_server_error = (result.answer.get("status") or 0) >= 500
            is_open = result.state == "queued" and not (met_server_error and self._failed_alone < ILL_ALONE)
        return results

    def _send(self, batch: Sequence[ClaimedEvent]) -> list[EventResult]:
        """Send one batch and understand the answer."""
        self._keep_pace(len(batch))
        if self._failed >= ILL:
            self.stopped = f"Lago gave no clear answer {self._failed} times in a row"
            return [self._again(item, "not sent", self.stopped) for item in batch]
        if clock.now() >= min(item.lease_until for item in batch):
            # Another worker may have claimed and sent it by now.
            return [self._again(item, "not sent", "too much time has passed") for item in batch]
        outcome = self.client.post_batch([item.event for item in batch])
        log.debug("batch sent", action="deliver.batch", events=len(batch), outcome=type(outcome).__name__)
        match outcome:
            case Accepted(lago_ids=lago_ids):
                self._gave_ids = self._gave_ids or None not in lago_ids.values()
                self._is_well()
                self._taken_at, self._took_any = clock.now(), True
                return [
                    EventResult(
                        item.event_id,
                        "accepted",
                        {"outcome": "accepted"},
                        lago_event_id=lago_ids.get(item.event.transaction_id),
                    )
                    for item in batch
                ]
            case Rejected() if len(batch) > 1 and not outcome.errors:
                self._is_well()
                # Too many for this Lago, or refused without naming an event: halves tell which it is.
                if outcome.too_large:
                    self.batch_size = max(len(batch) // 2, 1)
                return self._send_halves(batch, sent_at=None)
            case Rejected():
                self._is_well()
                return [self._refused(item, outcome, index) for index, item in enumerate(batch)]
            case Unknown(nothing_sent=False):
                return self._put_back_or_take_apart(batch, outcome)
            case _:
                return self._put_back(batch, outcome)

    def _is_well(self) -> None:
        """Lago gave a clear answer."""
        self._failed = self._failed_alone = 0

    def _send_halves(self, batch: Sequence[ClaimedEvent], sent_at: datetime | None) -> list[EventResult]:
        """Send the two halves of a batch, which was sent whole then, unless delivery stops in between."""
        middle = len(batch) // 2
        results = self._send(batch[:middle])
        if self.stopped is not None:
            results += [self._again(item, "not sent", self.stopped) for item in batch[middle:]]
        else:
            results += self._send(batch[middle:])
        return [
            replace(result, sent_at=sent_at) if result.answer["outcome"] == "not sent" else result
            for result in results
        ]

    def _put_back_or_take_apart(self, batch: Sequence[ClaimedEvent], outcome: Unknown) -> list[EventResult]:
        """Find the event that Lago cannot digest, so that it does not hold back its neighbours.

        Where a batch failed often enough, each half is sent by itself, down to single events. Where no single
        one gets through, it is Lago that is ill: then all are tried again later.
        """
        is_alone = len(batch) == 1
        now = clock.now()
        self._failed += 1
        self._failed_alone += is_alone
        failures = [
            item.failures.once_more(
                status=outcome.status, is_alone=is_alone, now=now, taken_at=self._taken_at
            )
            for item in batch
        ]
        may_repeat = not self._contract.bills_repeats and self._failed_alone < ILL_ALONE
        if not is_alone and may_repeat and any(each.is_suspect for each in failures):
            return self._send_halves(batch, sent_at=now)
        return [
            replace(result, answer={**result.answer, **each.as_answer()})
            for result, each in zip(self._put_back(batch, outcome), failures, strict=True)
        ]

    def _blamed(self, item: ClaimedEvent) -> EventResult | None:
        """An event that Lago does not hold and could not digest while others got through, or None."""
        if not item.failures.is_to_blame:
            return None
        return EventResult(item.event_id, "rejected", item.answer or {}, reason="lago_server_error")

    def _refused(self, item: ClaimedEvent, outcome: Rejected, index: int) -> EventResult:
        """One event of a batch that was refused because of one or more of its events."""
        error = outcome.errors.get(index)
        if error is None:
            return EventResult(item.event_id, "queued", {"outcome": "not named"})
        if not error.already_exists:
            return EventResult(
                item.event_id,
                "rejected",
                {"outcome": "rejected", "says": error.text, "codes": list(error.codes)},
                reason="refused_by_lago",
            )
        found = None
        before = self._in_vain
        with self._going_on():
            found = self._read_back(item)
        if self._in_vain > before:
            return self._again(item, "not read back", f"Lago cannot be asked for it: {self.trouble}")
        if found is not None:
            return found
        answer = {
            "outcome": "taken, not found",
            "says": f"{error.text}, but Lago does not show such an event",
        }
        if clock.now() - item.first_attempt_at < SETTLE_UNSEEN:
            return EventResult(item.event_id, "queued", answer, wait=timedelta(seconds=10))
        return EventResult(item.event_id, "held", answer, reason=Reason.CONFLICT_IN_LAGO)

    def _read_back(self, item: ClaimedEvent) -> EventResult | None:
        """What Lago holds under this event's id: ours, another one, or nothing (None)."""
        held = self.client.event(item.event.transaction_id)
        if held is None:
            return None
        differences = events_equal(item.event, held)
        if not differences:
            return EventResult(
                item.event_id, "accepted", {"outcome": "read back"}, lago_event_id=held.lago_id
            )
        answer = {"outcome": "conflict", "says": "; ".join(differences)}
        return EventResult(item.event_id, "held", answer, reason=Reason.CONFLICT_IN_LAGO)

    def _put_back(self, batch: Sequence[ClaimedEvent], outcome: Outcome) -> list[EventResult]:
        """Nothing is known about these events: into the queue again, and stop where going on is vain."""
        wait_s: float | None = None
        status: int | None = None
        sent_at: datetime | None = None
        match outcome:
            case Unauthorised(text=text):
                self.stopped, self.unauthorised = text, True
            case Refused(text=text):
                self.stopped = text
            case RateLimited(retry_after_s=wait_s, text=text):
                self._hold_back(wait_s or 1.0)
            case Unknown(reason=text, retry_after_s=wait_s, status=status, nothing_sent=nothing_sent):
                if nothing_sent:
                    self.stopped = text
                else:
                    sent_at = clock.now()
            case _:
                text = type(outcome).__name__
        kind = type(outcome).__name__.lower()
        # One for all: they stay together.
        spread = random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, guards nothing
        return [
            replace(self._again(item, kind, text, wait_s, status, spread=spread), sent_at=sent_at)
            for item in batch
        ]

    def _again(
        self,
        item: ClaimedEvent,
        outcome: str,
        says: str,
        wait_s: float | None = None,
        status: int | None = None,
        *,
        spread: float = 1.0,
    ) -> EventResult:
        """Try an event again, later each time, spread out, and never before Lago asked for it."""
        wait = min(FIRST_BACKOFF * 2 ** min(item.attempts - 1, 20), LONGEST_BACKOFF) * spread
        if outcome == "ratelimited":
            wait = min(wait, RATE_LIMITED_FOR)
        elif outcome in {"not sent", "not read back"}:
            wait = min(wait, LONGEST_REST)
        if wait_s is not None:
            wait = max(wait, timedelta(seconds=wait_s))
        answer = {"outcome": outcome, "says": says, "status": status, **item.failures.as_answer()}
        return EventResult(item.event_id, "queued", answer, wait=wait)

    # -- pace and book-keeping -------------------------------------------------------------------------

    def _hold_back(self, seconds: float) -> None:
        """Lago asked for a pause: no thread sends before it is over."""
        with self._lock:
            until = clock.now() + timedelta(seconds=min(seconds, self.patience.total_seconds()))
            self._next_send_at = max(until, self._next_send_at or until)

    def _keep_pace(self, events: int) -> None:
        """Wait until a batch of so many events keeps to the pace, over all threads."""
        with self._lock:
            now = clock.now()
            send_at = max(now, self._next_send_at or now)
            if self.events_per_second:
                self._next_send_at = send_at + timedelta(seconds=events / self.events_per_second)
        if send_at > now:
            clock.sleep((send_at - now).total_seconds())

    def _record(self, results: Sequence[EventResult], lease: UUID, *, lock_sessions: bool = False) -> None:
        record_results(results, lease, clock.now(), self.fence, lock_sessions=lock_sessions)
        tally: dict[str, Any] = {}
        for result in results:
            tally[result.state] = tally.get(result.state, 0) + result.is_news
        with self._lock:
            self.counts.accepted += tally.get("accepted", 0)
            self.counts.rejected += tally.get("rejected", 0)
            self.counts.held += tally.get("held", 0)
            self.counts.unknown += tally.get("queued", 0)
