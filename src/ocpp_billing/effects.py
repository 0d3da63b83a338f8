"""The one place through which every effect on the outside world happens.

An HTTP call, the commit of a database transaction and a NOTIFY are each wrapped in :func:`effect`.
In production nothing happens here. Tests install a hook that is called just before and just after
each effect and that may raise (a crash), sleep (a delay) or count, so that "what if the process died
exactly here" can be asked at every boundary of a run, without patching anything.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

Phase = Literal["before", "after"]


class Hook(Protocol):
    """What a test installs: called with the effect's name (``http lago POST /events/batch``) and phase."""

    def __call__(self, name: str, phase: Phase) -> None:
        """See an effect begin or end; raise to make the process die there."""


_hook: Hook | None = None


def install_hook(hook: Hook | None) -> None:
    """Install the hook of a test, or remove it with ``None``. One per process; never used in production."""
    global _hook  # noqa: PLW0603 - one switch per process is the point of this module
    _hook = hook


@contextmanager
def effect(name: str) -> Iterator[None]:
    """Mark an effect on the outside world.

    Args:
        name: kind, system and what is done, without ids, such as ``db commit decide``,
            ``http steve GET /transactions`` or ``notify sync``.

    The *after* phase is reached only when the effect did not raise: what comes after an exception is
    the caller's handling, which has effects of its own.
    """
    if _hook is not None:
        _hook(name, "before")
    yield
    if _hook is not None:
        _hook(name, "after")
