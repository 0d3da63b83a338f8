"""What a stored decision says, as people read it. Pure.

Decisions are written once, in whole watt-hours and UTC, as rules compare them; people read kWh and the
organisation's time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from django.utils import timezone
from django.utils.formats import date_format

from ocpp_billing.api.ledger import says_to
from ocpp_billing.portal.format import kwh

if TYPE_CHECKING:
    from ocpp_billing.api.auth import Caller

_ENERGY = re.compile(r"(?<![\w.-])(-?\d+) Wh\b")
# As the rules write an instant; to the second, so that two that are compared never look the same.
_INSTANT = re.compile(r"\b(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?: UTC)?")


def in_peoples_units(says: str) -> str:
    """The words of a decision with kWh for Wh and the organisation's time for UTC, as a sentence begins."""
    says = _ENERGY.sub(lambda found: f"{kwh(int(found[1]))} kWh", says)
    says = _INSTANT.sub(_local, says)
    return says[:1].upper() + says[1:]


def decision_says(who: Caller, says: str, reason: str | None, tag: str) -> str:
    """The words of a decision about a session of ``tag``, as this person may see them, in people's units."""
    return in_peoples_units(str(says_to(who, says, reason, tag)))


def _local(found: re.Match[str]) -> str:
    try:
        at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        return date_format(timezone.localtime(at), "j M Y, H:i:s")
    except (ValueError, OverflowError):  # no day of the calendar, or beyond its end in our zone
        return found[0]
