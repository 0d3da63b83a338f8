"""A charging network's past, made from a seed: the same arguments always make the same rows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from ocpp_billing.simulators.steve_store import STATION, MeterValue
from ocpp_billing.simulators.steve_time import DAY_MS

if TYPE_CHECKING:
    from ocpp_billing.simulators.steve_central import CentralSystem
    from ocpp_billing.simulators.steve_store import SteveStore

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
REASONS = ("Local", "Local", "Local", "Local", "EVDisconnected", "EVDisconnected", "Remote", None)
POWER_W = (3_700, 7_400, 11_000, 11_000, 22_000, 50_000)
CONNECTORS_PER_BOX = 2


@dataclass(frozen=True, slots=True)
class Generated:
    """What was made: ids of the first and last transaction, and the energy of the stopped ones."""

    first_id: int
    last_id: int
    stopped: int
    open: int
    delivered_wh: int


def generate(
    central: CentralSystem,
    count: int,
    seed: int,
    *,
    days: float = 90,
    open_count: int | None = None,
    stuck_count: int = 0,
    tag_count: int = 50,
    end_ms: int | None = None,
) -> Generated:
    """Append sessions to the store.

    They begin one after the other, spread evenly over the days before ``end_ms``; each connector's
    register goes on from session to session, one session ends before the next begins. One session in a
    hundred has its tag in lower case, one in two hundred delivers nothing. One in fifty arrives up to a day
    late, and what the same connector has to say after it waits for that: as ids follow arrivals, they are not
    in the order of starts.

    Args:
        central: whose store gets them.
        count: sessions.
        seed: of the random numbers.
        days: the time they are spread over.
        open_count: of them still running at the end, each the last of its connector, with one meter
            value; one in a thousand by default, at least one.
        stuck_count: of them without a stop although the connector has had newer sessions.
        tag_count: drivers; ``GEN-0001`` and so on, the registered ones kept as they are.
        end_ms: the end of the time; the server's now by default.

    Raises:
        ValueError: when more sessions are to stay open than there are.
    """
    random_ = random.Random(seed)
    store = central.store
    end = central.now_ms() if end_ms is None else end_ms
    spacing_ms = max(1, int(days * DAY_MS) // max(count, 1))
    # A connector sees a session every eight hours or so; at least enough that sessions do not overlap.
    connector_count = max(2, min(-(-8 * HOUR_MS // spacing_ms), count))
    cycle_ms = connector_count * spacing_ms
    running = max(1, count // 1000) if open_count is None else open_count
    running = min(running, connector_count)
    if running + stuck_count > count:
        raise ValueError(f"{running} open and {stuck_count} stuck of only {count} sessions")
    connectors = _connectors(central, connector_count)
    texts = _tags(central, tag_count)
    registers = [random_.randrange(0, 5_000_000) for _ in connectors]
    stuck = set(random_.sample(range(max(0, count - connector_count)), stuck_count)) if stuck_count else set()

    first_id = store.next_transaction_pk
    begin, delivered, stopped = end - count * spacing_ms, 0, 0
    said_until = [0] * connector_count
    waiting: list[_Session] = []
    longest_ms = max(MINUTE_MS, min(int(cycle_ms * 0.8), 10 * HOUR_MS))
    for number in range(count):
        place = number % connector_count
        start_ms = begin + number * spacing_ms
        start_ms -= start_ms % 1000
        duration_ms = random_.randrange(min(5 * MINUTE_MS, longest_ms), longest_ms + 1)
        duration_ms -= duration_ms % 1000
        energy_wh = 0 if random_.random() < 0.005 else _energy_wh(random_, duration_ms)
        late_ms = random_.randrange(DAY_MS) if random_.random() < 0.02 else 0
        plain, lower = texts[random_.randrange(len(texts))]
        spelling = lower if random_.random() < 0.01 else plain
        start_wh = registers[place]
        registers[place] = start_wh + energy_wh
        stop_ms = start_ms + duration_ms
        arrives_ms = min(max(start_ms + late_ms + 200, said_until[place]), end)
        session = _Session(arrives_ms, number, connectors[place], spelling, start_ms, start_wh, stop_ms)
        if number >= count - running or stop_ms > end:
            session.energy_wh = min(energy_wh, max(0, energy_wh * (end - start_ms) // max(duration_ms, 1)))
            session.runs_until_ms = min(stop_ms, end)
        else:
            session.energy_wh = energy_wh
            if number not in stuck:
                session.reason = REASONS[random_.randrange(len(REASONS))]
                session.stop_arrives_ms = min(max(stop_ms + late_ms + 200, arrives_ms), end)
                delivered += energy_wh
                stopped += 1
        said_until[place] = max(arrives_ms, session.stop_arrives_ms or 0)
        heappush(waiting, session)
        # No later session starts before this one, and none arrives before it starts.
        while waiting and waiting[0].arrives_ms <= start_ms:
            heappop(waiting).arrive(store)
    while waiting:
        heappop(waiting).arrive(store)
    return Generated(first_id, store.next_transaction_pk - 1, stopped, count - stopped, delivered)


@dataclass(slots=True, order=True)
class _Session:
    """One that waits for its arrival; in order of that."""

    arrives_ms: int
    number: int
    connector: int
    spelling: int
    start_ms: int
    start_wh: int
    stop_ms: int
    energy_wh: int = 0
    runs_until_ms: int | None = None
    stop_arrives_ms: int | None = None
    reason: str | None = None

    def arrive(self, store: SteveStore) -> None:
        """StEvE hears of it, and gives it the next id."""
        row = store.insert(self.connector, self.spelling, self.start_ms, self.start_wh, self.arrives_ms)
        store.delivered_wh[row] = self.energy_wh
        end_wh = self.start_wh + self.energy_wh
        if self.runs_until_ms is not None:
            store.add_value(self.connector, _reading(self.runs_until_ms, end_wh, store.ids[row]))
            return
        store.ended[row] = 1
        if self.stop_arrives_ms is not None:
            store.set_stop(row, self.stop_ms, end_wh, self.reason, STATION, self.stop_arrives_ms)


def _connectors(central: CentralSystem, count: int) -> list[int]:
    always = not central.release.evse
    return [
        central.store.connector(
            f"CP-GEN-{index // CONNECTORS_PER_BOX + 1:04d}",
            index % CONNECTORS_PER_BOX + 1,
            numbers_used_always=always,
        )
        for index in range(count)
    ]


def _tags(central: CentralSystem, count: int) -> list[tuple[int, int]]:
    """Text numbers of each driver's tag as registered and in lower case."""
    store = central.store
    texts = []
    for number in range(1, count + 1):
        id_tag = f"GEN-{number:04d}"
        if store.find_tag(id_tag) is None:
            store.add_tag(id_tag, max_active=-1)
        texts.append((store.tag_text(id_tag), store.tag_text(id_tag.lower())))
    return texts


def _energy_wh(random_: random.Random, duration_ms: int) -> int:
    full_wh = POWER_W[random_.randrange(len(POWER_W))] * duration_ms // HOUR_MS
    return min(max(1, full_wh * random_.randrange(30, 101) // 100), 90_000)


def _reading(at_ms: int, wh: int, transaction_id: int) -> MeterValue:
    register = "Energy.Active.Import.Register"
    return MeterValue(at_ms, str(wh), "Sample.Periodic", None, register, None, "Wh", None, transaction_id)
