"""The time, from one place, so that tests can choose it: a month's end, a DST night, next week."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_now: Callable[[], datetime] | None = None
_sleep: Callable[[float], None] = time.sleep


def now() -> datetime:
    """The present instant, aware, in UTC."""
    return datetime.now(UTC) if _now is None else _now()


def sleep(seconds: float) -> None:
    """Wait, by the same clock."""
    _sleep(seconds)


def install_clock(
    clock: Callable[[], datetime] | None, sleeper: Callable[[float], None] | None = None
) -> None:
    """Let tests say what time it is and how one waits; ``None`` = the machine's clock again."""
    global _now, _sleep  # one clock per process is the point of this module
    _now, _sleep = clock, sleeper or time.sleep
