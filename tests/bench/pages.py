"""How long what a person asks for takes at a big ledger, that is written directly."""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.bench.systems import empty_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ROUNDS = 5
AIM_MS = 300


def measure_from_arguments(measure: Callable[..., int], sessions: int) -> int:
    """Call a measurement on an empty ledger, as ``[SESSIONS] [--plans]`` say."""
    os.environ["AUTH_SECRET"] = "b" * 40
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    with empty_ledger():
        return measure(numbers[0] if numbers else sessions, plans="--plans" in sys.argv)


def fill(statements: Sequence[str], bound: Mapping[str, int]) -> None:
    """Write the ledger; statements without a parameter have percent signs of their own."""
    from django.db import connection

    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement, dict(bound) if "%(" in statement else None)


def medians_ms(*asks: Callable[[], Any]) -> list[float]:
    """Of some questions, asked in turn, how long the median of each took."""
    took: list[list[float]] = [[] for _ in asks]
    for _ in range(ROUNDS):
        for times, ask in zip(took, asks, strict=True):
            began = time.perf_counter()
            ask()
            times.append((time.perf_counter() - began) * 1000)
    return [statistics.median(times) for times in took]


def print_plans(queries: Iterable[Mapping[str, str]]) -> None:
    """Print PostgreSQL's plans of queries that were captured."""
    from django.db import connection

    with connection.cursor() as cursor:
        for query in queries:
            if not query["sql"].startswith(("SELECT", "WITH", "\n")):
                continue  # the beginning or the end of a transaction has no plan
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS OFF) {query['sql']}")
            sys.stdout.write("\n".join(row[0] for row in cursor.fetchall()) + "\n\n")
