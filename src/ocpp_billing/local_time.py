"""Instants as people read them: in the organisation's zone (``SYNC_TIMEZONE``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.utils import timezone
from django.utils.formats import date_format

if TYPE_CHECKING:
    from datetime import datetime


def day_and_time(at: datetime) -> str:
    """An instant in full, for what must not be misread: ``1 Dec 2026, 00:00``."""
    return date_format(timezone.localtime(at), "j M Y, H:i")
