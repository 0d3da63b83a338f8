"""A process of the engine that can be killed at any of its effects on the outside world."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connection

from ocpp_billing.effects import install_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocpp_billing.effects import Phase

WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|COPY|CREATE|pg_notify|NOTIFY)\b(?! OF| SKIP)")
LOCKS = re.compile(r"\bFOR (NO KEY )?UPDATE\b")


class Death(BaseException):
    """The process is killed here: nothing may catch this, and nothing happens after it."""


class Boundary(NamedTuple):
    """A moment just before or just after an effect."""

    effect: str
    phase: Phase

    def __str__(self) -> str:
        return f"{self.phase} {self.effect}"


@dataclass
class Mortal:
    """A process of the engine: it notes every boundary that it passes, and dies at the one it is told.

    After its death every further effect and query of it raises, too, so that no ``finally`` of it does
    anything; its database connection is gone, so that what it had not committed is rolled back.

    Attributes:
        dies_at: how many boundaries it passes before it dies; None = it lives.
        meanwhile: what happens in the world when a boundary is passed for the first time. Shared with the
            processes after it: it happens once.
        passed: the boundaries, in order; the last one is where it died.
        unmarked: what it wrote outside of every effect.
    """

    dies_at: int | None = None
    meanwhile: dict[Boundary, Callable[[], object]] = field(default_factory=dict)
    passed: list[Boundary] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)
    is_dead: bool = False
    _under_way: list[str] = field(default_factory=list)
    _thread: int = 0

    def live(self, act: Callable[[], object]) -> bool:
        """Do something as this process; returns whether it survived."""
        self._thread = threading.get_ident()
        install_hook(self)
        try:
            with connection.execute_wrapper(self._watch_query):
                act()
        except Death:
            return False
        finally:
            install_hook(None)
            connection.close()
        return True

    def __call__(self, name: str, phase: Phase) -> None:
        """An effect begins or has ended."""
        if threading.get_ident() != self._thread:
            return
        if self.is_dead:
            raise Death
        boundary = Boundary(name, phase)
        self.passed.append(boundary)
        self._note(boundary)
        happens = self.meanwhile.pop(boundary, None)
        if happens is not None:
            happens()
        if self.dies_at is not None and len(self.passed) > self.dies_at:
            self.die()

    def die(self) -> None:
        """Now."""
        self.is_dead = True
        if connection.connection is not None:
            connection.connection.close()
        raise Death

    def _note(self, boundary: Boundary) -> None:
        if boundary.effect.startswith("http"):
            return  # nothing is written to the ledger during a call, and a failed call has no end
        if boundary.phase == "before":
            self._under_way.append(boundary.effect)
        else:
            self._under_way.pop()

    def _watch_query(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Mapping[str, Any]
    ) -> Any:
        if self.is_dead:
            raise Death
        if not self._under_way and WRITES.search(LOCKS.sub("", str(sql))):
            self.unmarked.append(str(sql))
        return execute(sql, params, many, context)
