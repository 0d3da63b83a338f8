"""Whether Lago would honour a negative usage event: one answer for corrections and for moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connection

if TYPE_CHECKING:
    from ocpp_billing.lago.contract import SubscriptionRow
    from ocpp_billing.lago.directory import LagoDirectory


def leaves_enough(source: str, row: SubscriptionRow, energy_wh: int, directory: LagoDirectory) -> bool:
    """Whether the row's open period holds so much; if so, it is promised for the rest of the run.

    Lago lets no period's total fall below 0 and pays nothing back. So it must hold enough even if all of our
    negative events that are still under way arrive, and none of the positive ones. What it accepted and was
    not seen to count is under way, too: it counts from a cache that is older than its answer. Where that
    makes a difference the correction waits for the confirmation.

    Args:
        source: name of the StEvE.
        row: an active subscription that charges the metric in arrears.
        energy_wh: of the event, negative.
        directory: asks Lago what it counts.
    """
    counted_wh = directory.counted_wh(row)
    if counted_wh is None:
        return False
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(sum(energy_wh), 0) FROM usage_event"
            " WHERE source_id = %s AND state IN ('queued', 'accepted') AND energy_wh < 0"
            " AND lago_subscription_id = %s",
            [source, row.lago_id],
        )
        (under_way_wh,) = cursor.fetchone()
    if counted_wh + int(under_way_wh) + directory.promised_wh(row) + energy_wh < 0:
        return False
    directory.promise(row, energy_wh)
    return True
