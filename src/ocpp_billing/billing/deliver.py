"""Step 4, deliver: claimed usage events go to Lago, and what became of each is written down.

Nothing here decides whether an event was stored by anything but Lago's word: an answer that leaves it
open puts the event back into the queue, with the same bytes, to be read back before it is sent again.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from django.db import connections

from ocpp_billing import clock
from ocpp_billing.billing.late import MISSING_FOR, InvoicedPeriods
from ocpp_billing.billing.outbox import (
    FIRST_BACKOFF,
    LONGEST_BACKOFF,
    ClaimedEvent,
    Contract,
    EventResult,
    claim_attempted_unbilled,
    claim_events,
    claim_in_doubt,
    customers_to_ask,
    give_up_events,
    next_due_at,
    others_got_through,
    plans_of_due,
    record_results,
    set_aside_unbilled,
)
from ocpp_billing.charging.reasons import Reason
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
from ocpp_billing.lago.wire import MAX_BATCH_EVENTS, events_equal
from ocpp_billing.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from ocpp_billing.database import Fence
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.directory import LagoDirectory

log = get_logger(__name__)

# An id that Lago calls taken and does not show is looked for so long, then a person has to look.
SETTLE_UNSEEN = timedelta(minutes=2)
# A batch that met a server error so often is taken apart.
SERVER_ERRORS_BEFORE_TAKING_APART = 3
# An event is to blame for a server error when so many tries in a row, by itself, meet one, too, while others
# got through; and Lago is ill when so many events in a row do.
TRIES_ALONE = 3
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
    _contract: Contract = field(default_factory=lambda: Contract("", None, frozenset()))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next_send_at: datetime | None = None
    # How many events in a row met a server error by themselves, in this run, with none accepted in between.
    _failed_alone: int = 0
    _gave_ids: bool = False

    def deliver(self) -> DeliverCounts:
        """Send what is due, until nothing is left that can be sent now.

        Raises:
            LagoError: when Lago cannot be asked about billing periods.
            FenceError: when another worker has taken over.
        """
        give_up_at = clock.now() + self.patience
        while self.stopped is None:
            self._check_what_is_billed()
            self._look_for_what_is_in_doubt()
            if self._send_all_claimable():
                continue
            due_at = next_due_at(self.source)
            if self.stopped is not None or due_at is None or due_at > give_up_at:
                break
            wait = due_at - clock.now()
            if wait <= timedelta():
                break
            clock.sleep(wait.total_seconds())
        return self.counts

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
        while claimed := claim_attempted_unbilled(
            self.source, lease, MAX_BATCH_EVENTS, clock.now(), self._contract, self.fence
        ):
            results = [self._settle_unbilled(item, periods) for item in claimed]
            self._record([result for result in results if result is not None], lease, lock_sessions=True)
            dead = [item.event_id for item, result in zip(claimed, results, strict=True) if result is None]
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

    def _settle_unbilled(self, item: ClaimedEvent, periods: InvoicedPeriods) -> EventResult | None:
        """An event of unknown outcome that Lago would not bill as it is: what Lago holds decides.

        Sent again it would be accepted and never billed, so what Lago does not hold is held by us: until
        Lago could not bill it any more if it got it now, and was seen twice not to have it. Then it is
        given up (None).
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
                return None
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

    def _look_for_what_is_in_doubt(self) -> None:
        """Read back what Lago may have and would bill twice if it got it again, the later the older it is."""
        lease = uuid4()
        while claimed := claim_in_doubt(
            self.source, lease, MAX_BATCH_EVENTS, clock.now(), self._contract, self.fence
        ):
            self._record([self._read_back(item) or self._not_shown_yet(item) for item in claimed], lease)

    def _not_shown_yet(self, item: ClaimedEvent) -> EventResult:
        """It is looked for again, at the latest when it may be sent again."""
        now = clock.now()
        sent_at = item.sent_at or now
        wait = min(max(now - sent_at, FIRST_BACKOFF), max(sent_at + SHOWN_WITHIN - now, timedelta()))
        minutes = int(SHOWN_WITHIN.total_seconds() // 60)
        answer = {
            "outcome": "not shown yet",
            "says": "Lago may have it and not show it yet: unless it does, it is sent again "
            f"{minutes} minutes after it was sent",
            "alone": _failures_alone(item),
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
            found = (self._read_back(item) or self._blamed(item)) if item.may_be_known else None
            if found is None:
                to_send.append(item)
            else:
                results.append(found)
        apart = [item for item in to_send if item.alone or self._is_tried_alone(item)]
        if together := [item for item in to_send if item not in apart]:
            results += self._send(together)
        results += self._send_apart(apart)
        self._record(results, lease)

    def _is_tried_alone(self, item: ClaimedEvent) -> bool:
        """Whether an event may be why its batches fail, and those must not be taken apart and sent again."""
        return self._contract.bills_repeats and item.attempts > SERVER_ERRORS_BEFORE_TAKING_APART

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
            is_open = result.state == "queued" and not (met_server_error and self._failed_alone < TRIES_ALONE)
        return results

    def _send(self, batch: Sequence[ClaimedEvent]) -> list[EventResult]:
        """Send one batch and understand the answer."""
        self._keep_pace(len(batch))
        if clock.now() >= min(item.lease_until for item in batch):
            # Another worker may have claimed and sent it by now.
            return [self._again(item, "not sent", "too much time has passed") for item in batch]
        outcome = self.client.post_batch([item.event for item in batch])
        log.debug("batch sent", action="deliver.batch", events=len(batch), outcome=type(outcome).__name__)
        match outcome:
            case Accepted(lago_ids=lago_ids):
                self._gave_ids = self._gave_ids or None not in lago_ids.values()
                self._failed_alone = 0
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
                # Too many for this Lago, or refused without naming an event: halves tell which it is.
                if outcome.too_large:
                    self.batch_size = max(len(batch) // 2, 1)
                return self._send_halves(batch)
            case Rejected():
                return [self._refused(item, outcome, index) for index, item in enumerate(batch)]
            case Unknown(status=int(status)) if status >= 500:
                return self._put_back_or_take_apart(batch, outcome)
            case _:
                return self._put_back(batch, outcome)

    def _send_halves(self, batch: Sequence[ClaimedEvent]) -> list[EventResult]:
        """Send the two halves of a batch by themselves, unless delivery stops in between."""
        middle = len(batch) // 2
        results = self._send(batch[:middle])
        if self.stopped is not None:
            return results + [self._again(item, "not sent", self.stopped) for item in batch[middle:]]
        return results + self._send(batch[middle:])

    def _put_back_or_take_apart(self, batch: Sequence[ClaimedEvent], outcome: Unknown) -> list[EventResult]:
        """Find the event that Lago cannot digest, so that it does not hold back its neighbours.

        Where a batch failed often enough, each half is sent by itself, down to single events. Where no single
        one gets through, it is Lago that is ill: then all are tried again later.
        """
        if len(batch) == 1:
            self._failed_alone += 1
            failed = {"alone": _failures_alone(batch[0]) + 1}
            return [
                replace(result, answer={**result.answer, **failed})
                for result in self._put_back(batch, outcome)
            ]
        may_repeat = not self._contract.bills_repeats
        is_suspect = min(item.attempts for item in batch) >= SERVER_ERRORS_BEFORE_TAKING_APART
        if may_repeat and is_suspect and self._failed_alone < TRIES_ALONE:
            return self._send_halves(batch)
        return self._put_back(batch, outcome)

    def _blamed(self, item: ClaimedEvent) -> EventResult | None:
        """An event that Lago does not hold and could not digest while others got through, or None."""
        if _failures_alone(item) < TRIES_ALONE or not others_got_through(item, self.source):
            return None
        answer = item.answer or {}
        return EventResult(
            item.event_id, "rejected", answer, reason="lago_server_error", sent_at=item.sent_at
        )

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
        found = self._read_back(item)
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
        return [replace(self._again(item, kind, text, wait_s, status), sent_at=sent_at) for item in batch]

    def _again(
        self,
        item: ClaimedEvent,
        outcome: str,
        says: str,
        wait_s: float | None = None,
        status: int | None = None,
    ) -> EventResult:
        """Try an event again, later each time, spread out, and never before Lago asked for it."""
        backoff = min(FIRST_BACKOFF * 2 ** min(item.attempts - 1, 20), LONGEST_BACKOFF)
        wait = backoff * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, guards nothing
        if wait_s is not None:
            wait = max(wait, timedelta(seconds=wait_s))
        answer = {"outcome": outcome, "says": says, "status": status, "alone": _failures_alone(item)}
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


def _failures_alone(item: ClaimedEvent) -> int:
    """How often in a row Lago met an error of its own with this event by itself."""
    return int((item.answer or {}).get("alone", 0))
