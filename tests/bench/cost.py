"""What processes cost: seconds of the clock, CPU seconds of each, memory."""

from __future__ import annotations

import os
import resource
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """What something took: by the clock, and CPU (user and system) of each part, in seconds."""

    wall_s: float = 0.0
    engine_s: float = 0.0
    database_s: float = 0.0
    simulators_s: float = 0.0

    @property
    def own_s(self) -> float:
        """CPU seconds of what is ours: engine and database, which share a core in these benchmarks."""
        return self.engine_s + self.database_s

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.wall_s + other.wall_s,
            self.engine_s + other.engine_s,
            self.database_s + other.database_s,
            self.simulators_s + other.simulators_s,
        )

    def __sub__(self, other: Cost) -> Cost:
        return self + Cost(-other.wall_s, -other.engine_s, -other.database_s, -other.simulators_s)


@dataclass(frozen=True, slots=True)
class Meter:
    """Reads what this process, a PostgreSQL and the simulators have used so far."""

    database_pid: int
    simulators_pid: int

    def read(self) -> Cost:
        """Since the processes began; subtract two of them."""
        return Cost(
            time.perf_counter(),
            time.process_time(),
            tree_cpu_s(self.database_pid),
            cpu_s(self.simulators_pid),
        )


def cpu_s(pid: int, *, reaped: bool = False) -> float:
    """CPU seconds of a process, with ``reaped`` those of its ended children, too; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11 : 15 if reaped else 13])) / _TICKS_PER_S


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process, of its children, and of those that have ended."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        children = []
    return cpu_s(pid, reaped=True) + sum(cpu_s(int(child), reaped=True) for child in children)


def peak_rss_mb() -> float:
    """The most that this process has held in memory so far, or since it was to forget."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> float:
    """Measure the memory of what comes next alone (Linux). Returns what this process holds now, in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_rss_mb()


@contextmanager
def statements_told(meter: Meter) -> Iterator[None]:
    """Print which statements of this thread's connection cost the database most CPU.

    What other threads run meanwhile is counted in: deliver with DELIVERY_CONCURRENCY=1.
    """
    from django.db import connection

    costs: dict[str, tuple[int, Cost]] = {}

    def measured(execute, sql, params, many, context):
        before = meter.read()
        try:
            return execute(sql, params, many, context)
        finally:
            number, cost = costs.get(sql, (0, Cost()))
            costs[sql] = number + 1, cost + (meter.read() - before)

    with connection.execute_wrapper(measured):
        yield
    for sql, (number, cost) in sorted(costs.items(), key=lambda item: -item[1][1].database_s)[:15]:
        words = " ".join(sql.split())
        print(f"  {cost.database_s:6.2f} s in {number:6,}: {words[:60]} ... {words[-60:]}")
