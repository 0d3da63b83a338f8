"""The time, from one place, so that tests can choose it: a month's end, a DST night, next week."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_now: Callable[[], datetime] | None = None


def now() -> datetime:
    """The present instant, aware, in UTC."""
    return datetime.now(UTC) if _now is None else _now()


def install_clock(clock: Callable[[], datetime] | None) -> None:
    """Let tests say what time it is; ``None`` = the machine's clock again. Never used in production."""
    global _now  # noqa: PLW0603 - one clock per process is the point of this module
    _now = clock
