"""The book of alerts: opened once, resolved once, and each word to each channel in an outbox.

In between nothing is repeated, but for one thing: what is about a number of sessions is told again when
there are twice as many, and at least ten more, than when it was told last.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.db import connection, transaction

from ocpp_billing.alerts.channels import ChannelError, Notice
from ocpp_billing.effects import effect
from ocpp_billing.log import get_logger
from ocpp_billing.sync.models import Alert, AlertMessage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocpp_billing.alerts.channels import Channel
    from ocpp_billing.alerts.conditions import Condition

log = get_logger(__name__)

# A word that cannot be delivered is tried again ever later, for about four hours.
FIRST_RETRY, LONGEST_RETRY, MOST_ATTEMPTS = timedelta(seconds=30), timedelta(hours=1), 10


@dataclass(frozen=True, slots=True)
class Changes:
    """What a look changed: codes of alerts that were opened, that have grown, and that were resolved."""

    opened: tuple[str, ...]
    grown: tuple[str, ...]
    resolved: tuple[str, ...]


def write(
    source: str,
    present: Sequence[Condition],
    competence: Sequence[str],
    channels: Sequence[str],
    now: datetime,
) -> Changes:
    """Open what is the case and was not, resolve what was and is not; say so once to each channel.

    What has grown much is told again.

    Several processes may do this at once: the database lets one of them open an alert.

    Args:
        source: name of the StEvE.
        present: what is the case.
        competence: codes that the caller can judge; others are left alone.
        channels: names of those who are told.
        now: the present instant.
    """
    opened: list[tuple[int, str]] = []
    grown: list[tuple[int, str]] = []
    with effect("db commit alerts"), transaction.atomic(), connection.cursor() as cursor:
        for condition in present:
            cursor.execute(
                _OPEN,
                {
                    "source": source,
                    "condition": condition.code,
                    "says": condition.says,
                    "do": condition.do,
                    "size": condition.size,
                    "now": now,
                },
            )
            alert_id, is_new = cursor.fetchone()
            if is_new:
                opened.append((alert_id, condition.code))
                continue
            cursor.execute(_GROW, {"id": alert_id, "size": condition.size})
            if cursor.fetchone() is not None:
                grown.append((alert_id, condition.code))
        gone = sorted(set(competence) - {condition.code for condition in present})
        cursor.execute(_RESOLVE, {"source": source, "gone": gone, "now": now})
        resolved: list[tuple[int, str]] = cursor.fetchall()
        AlertMessage.objects.bulk_create(
            AlertMessage(
                alert_id=alert_id,
                channel=channel,
                resolved=alerts is resolved,
                grown=alerts is grown,
                due_at=now,
            )
            for alerts in (opened, grown, resolved)
            for alert_id, _ in alerts
            for channel in channels
        )
    return Changes(*(tuple(code for _, code in alerts) for alerts in (opened, grown, resolved)))


def send_due(source: str, channels: Mapping[str, Channel], url: str, now: datetime) -> int:
    """Send every word that is due; at least once, and as a rule exactly once.

    Returns:
        How many were delivered.
    """
    sent = 0
    while (message := _claim(source, now)) is not None:
        channel = channels.get(message.channel)
        try:
            if channel is None:
                raise ChannelError("this channel is not configured any more", final=True)
            channel.send(_notice(message, url))
        except ChannelError as error:
            given_up = error.final or message.attempts >= MOST_ATTEMPTS
            _record(message, error=str(error), **({"due_at": None} if given_up else {}))
            log.warning(
                "alert not delivered",
                action="alerts.failed",
                channel=message.channel,
                condition=message.alert.condition,
                attempts=message.attempts,
                given_up=given_up,
                error=str(error),
            )
        else:
            sent += 1
            _record(message, sent_at=now, due_at=None, error=None)
    return sent


def _claim(source: str, now: datetime) -> AlertMessage | None:
    """The next due word, whose next attempt is put off before it is sent."""
    with effect("db commit claim alert"), transaction.atomic():
        message = (
            AlertMessage.objects.select_for_update(skip_locked=True, of=("self",))
            .select_related("alert")
            .filter(alert__source_id=source, due_at__lte=now)
            .order_by("id")
            .first()
        )
        if message is None:
            return None
        message.attempts += 1
        message.due_at = now + min(FIRST_RETRY * 2 ** (message.attempts - 1), LONGEST_RETRY)
        message.save(update_fields=["attempts", "due_at"])
        return message


def _record(message: AlertMessage, **changes: Any) -> None:
    with effect("db commit alert sent"):
        AlertMessage.objects.filter(pk=message.pk).update(**changes)


def _notice(message: AlertMessage, url: str) -> Notice:
    alert: Alert = message.alert
    return Notice(
        message_id=message.pk,
        source=alert.source_id,
        condition=alert.condition,
        says=alert.says,
        do=alert.do,
        opened_at=alert.opened_at,
        resolved_at=alert.resolved_at if message.resolved else None,
        grown=message.grown,
        url=url,
    )


_OPEN = """
INSERT INTO alert (source_id, condition, says, "do", told_size, opened_at)
VALUES (%(source)s, %(condition)s, %(says)s, %(do)s, %(size)s, %(now)s)
ON CONFLICT (source_id, condition) WHERE resolved_at IS NULL
DO UPDATE SET says = EXCLUDED.says, "do" = EXCLUDED."do"
RETURNING id, xmax = 0
"""

_GROW = """
UPDATE alert SET told_size = %(size)s
WHERE id = %(id)s AND %(size)s::int >= greatest(told_size * 2, told_size + 10)
RETURNING id
"""

_RESOLVE = """
UPDATE alert SET resolved_at = %(now)s
WHERE source_id = %(source)s AND condition = ANY(%(gone)s::text[]) AND resolved_at IS NULL
RETURNING id, condition
"""
