"""Mappings as a CSV file, for import and export."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from django.db import transaction

from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.config import parse_instant
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.store import MappingError, create_mapping
from ocpp_billing.spreadsheet import read_cell, write_cell

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from ocpp_billing.accounts.models import User

COLUMNS = ["id_tag", "customer_id", "subscription_id", "valid_from", "valid_to", "active", "note"]


@dataclass(slots=True)
class ImportReport:
    """What became of each line: ``created`` and ``unchanged`` are counts, ``errors`` (line, sentence)."""

    created: int = 0
    unchanged: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)


def import_mappings(
    lines: Iterable[str],
    *,
    source: str,
    zone: ZoneInfo,
    by: str,
    user: User | None = None,
    dry_run: bool = False,
) -> ImportReport:
    """Import mappings; a line with an error is reported and its neighbours go on.

    A line that says what the ledger already holds changes nothing, so an import is safe to repeat.

    Args:
        lines: the file, with a header of the columns in any order; ids are Lago's external ids.
        source: name of the StEvE.
        zone: zone of dates without one; a date means 00:00 there.
        by: who imports, for the audit.
        user: their account, if any.
        dry_run: report only.

    Raises:
        MappingError: when the header is not the one of :data:`COLUMNS`.
    """
    reader = csv.DictReader(_without_bom(lines), skipinitialspace=True)
    header = [name.strip() for name in reader.fieldnames or []]
    missing = [name for name in ("id_tag", "customer_id", "valid_from") if name not in header]
    unknown = [name for name in header if name not in COLUMNS]
    if missing or unknown:
        wrong = f"missing: {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown)}"
        raise MappingError(f"The first line must name the columns {','.join(COLUMNS)} ({wrong}).")
    reader.fieldnames = header
    report = ImportReport()
    with transaction.atomic():
        for row in reader:
            if any((value or "").strip() for value in row.values() if isinstance(value, str)):
                _import_line(report, reader.line_num, row, source=source, zone=zone, by=by, user=user)
        transaction.set_rollback(dry_run)
    return report


def _without_bom(lines: Iterable[str]) -> Iterable[str]:
    for number, line in enumerate(lines):
        yield line.removeprefix("\ufeff") if number == 0 else line


def _import_line(
    report: ImportReport,
    line: int,
    row: dict[str | None, str | list[str] | None],
    *,
    source: str,
    zone: ZoneInfo,
    by: str,
    user: User | None,
) -> None:
    try:
        if None in row:
            raise MappingError(f"more than {len(COLUMNS)} cells; put text with commas into quotation marks.")
        cells = {str(name): read_cell(str(value or "")) for name, value in row.items()}
        valid_from = _instant(cells, "valid_from", zone)
        if valid_from is None:
            raise MappingError("valid_from is empty: say from when the customer pays.")
        customer, subscription = cells["customer_id"], cells.get("subscription_id") or None
        valid_to, active = _instant(cells, "valid_to", zone), _active(cells.get("active", ""))
        known = TagMapping.objects.filter(
            id_tag__source=source,
            id_tag__folded=fold_id_tag(cells["id_tag"]),
            customer_external_id=customer,
            subscription_external_id=subscription,
            valid_from=valid_from,
            valid_to=valid_to,
            active=active,
        )
        if known.exists():
            report.unchanged += 1
            return
        create_mapping(
            source=source,
            id_tag=cells["id_tag"],
            customer=customer,
            subscription=subscription,
            valid_from=valid_from,
            valid_to=valid_to,
            active=active,
            note=cells.get("note", ""),
            verified=False,
            by=by,
            user=user,
        )
    except MappingError as error:
        report.errors.append((line, str(error)))
    else:
        report.created += 1


def _instant(cells: dict[str, str], name: str, zone: ZoneInfo) -> datetime | None:
    text = cells.get(name, "")
    if not text:
        return None
    try:
        return parse_instant(text, zone)
    except ValueError as error:
        raise MappingError(f"{name} is {text!r}, but must be {error}.") from None


def _active(text: str) -> bool:
    if text.lower() in {"", "true", "1", "yes"}:
        return True
    if text.lower() in {"false", "0", "no"}:
        return False
    raise MappingError(f"active is {text!r}, but must be true or false.")


def export_mappings(target: IO[str], *, source: str) -> int:
    """Write all mappings as CSV, in the form that :func:`import_mappings` reads; returns their number."""
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(COLUMNS)
    number = 0
    rows = TagMapping.objects.filter(id_tag__source=source).select_related("id_tag")
    for mapping in rows.order_by("id_tag__folded", "valid_from").iterator():
        number += 1
        writer.writerow(
            [
                write_cell(mapping.id_tag.text),
                write_cell(mapping.customer_external_id),
                write_cell(mapping.subscription_external_id or ""),
                mapping.valid_from.isoformat(),
                "" if mapping.valid_to is None else mapping.valid_to.isoformat(),
                "true" if mapping.active else "false",
                write_cell(mapping.note),
            ]
        )
    return number
