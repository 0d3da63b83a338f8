"""What time it is at the other side, by the ``Date`` header of its answers."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def date_of(headers: Mapping[str, str]) -> datetime | None:
    """The instant in an answer's ``Date``, to the second; None where there is none that can be read."""
    try:
        at = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
