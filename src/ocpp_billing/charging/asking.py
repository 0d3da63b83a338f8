"""Asking for new decisions about sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def ask_again(cursor: Any, chosen: str, bound: Mapping[str, Any]) -> int:
    """Ask for a new decision about every session that a condition chooses; returns how many.

    A decision that is being made about one of them does not count any more. The sessions are locked in the
    order in which decisions lock them, so that neither waits for the other in a ring.

    Args:
        cursor: within a transaction.
        chosen: SQL over ``charging_session s``; never made of what a person or another system said.
        bound: its parameters.
    """
    cursor.execute(_ASK_AGAIN.format(chosen=chosen), bound)
    return int(cursor.rowcount)


# ARRAY(...) is found once. In IN (...) PostgreSQL may find the rows anew for each session, if it takes the
# tables for nearly empty: 250 sessions then take half a minute.
_ASK_AGAIN = """
UPDATE charging_session SET needs_decision = true, asked = asked + 1
WHERE id = ANY(ARRAY(SELECT s.id FROM charging_session s WHERE {chosen} ORDER BY s.id FOR UPDATE))
"""
