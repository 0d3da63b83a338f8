"""Mappings as a CSV file, for import and export."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from django.db import transaction

from ocpp_billing.charging.fold import fold_id_tag
from ocpp_billing.charging.mask import mask_id_tag
from ocpp_billing.config import parse_instant
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.store import (
    MappingConflictError,
    MappingError,
    create_mapping,
    many_mappings,
)
from ocpp_billing.spreadsheet import csv_lines, read_cell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from ocpp_billing.accounts.models import User

COLUMNS = ["id_tag", "customer_id", "subscription_id", "valid_from", "valid_to", "active", "note"]


@dataclass(frozen=True, slots=True)
class ImportedLine:
    """What became of a line, or would.

    Attributes:
        number: of the line in the file, the header being 1.
        outcome: ``created``, ``unchanged`` or ``error``.
        says: what is wrong with it; empty otherwise.
        cells: as they stand in the file, by column.
    """

    number: int
    outcome: str
    says: str
    cells: dict[str, str]


@dataclass(slots=True)
class ImportReport:
    """What became of each line, in the order of the file."""

    lines: list[ImportedLine] = field(default_factory=list)

    @property
    def created(self) -> int:
        """How many mappings were made."""
        return sum(line.outcome == "created" for line in self.lines)

    @property
    def unchanged(self) -> int:
        """How many lines said what the ledger already held."""
        return sum(line.outcome == "unchanged" for line in self.lines)

    @property
    def errors(self) -> list[tuple[int, str]]:
        """Number and sentence of each line that was left out."""
        return [(line.number, line.says) for line in self.lines if line.outcome == "error"]


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
        MappingError: when the header is not the one of :data:`COLUMNS`, or the file is no CSV.
    """
    reader = csv.DictReader(_without_bom(lines), skipinitialspace=True)
    try:
        return _import_all(reader, source=source, zone=zone, by=by, user=user, dry_run=dry_run)
    except csv.Error as error:
        raise MappingError(f"Line {reader.line_num} cannot be read ({error}): mend the file.") from None


def _import_all(
    reader: csv.DictReader[str], *, source: str, zone: ZoneInfo, by: str, user: User | None, dry_run: bool
) -> ImportReport:
    header = [name.strip() for name in reader.fieldnames or []]
    missing = [name for name in ("id_tag", "customer_id", "valid_from") if name not in header]
    unknown = [name for name in header if name not in COLUMNS]
    if missing or unknown:
        wrong = f"missing: {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown)[:200]}"
        raise MappingError(f"The first line must name the columns {','.join(COLUMNS)} ({wrong}).")
    reader.fieldnames = header
    report = ImportReport()
    with transaction.atomic():
        with many_mappings(source) as together:
            for row in reader:
                if any((value or "").strip() for value in row.values() if isinstance(value, str)):
                    line = _import_line(
                        row, reader.line_num, source=source, zone=zone, by=by, user=user, together=together
                    )
                    report.lines.append(line)
        transaction.set_rollback(dry_run)
    return report


def _without_bom(lines: Iterable[str]) -> Iterable[str]:
    for number, line in enumerate(lines):
        yield line.removeprefix("\ufeff") if number == 0 else line


def _import_line(
    row: dict[str | None, str | list[str] | None],
    number: int,
    *,
    source: str,
    zone: ZoneInfo,
    by: str,
    user: User | None,
    together: set[int],
) -> ImportedLine:
    cells = {name: read_cell(str(value or "")) for name, value in row.items() if name is not None}
    try:
        if any("\0" in cell for cell in cells.values()):
            raise MappingError("it holds a NUL character: save the file as UTF-8 text.")
        if None in row:
            raise MappingError(f"more than {len(COLUMNS)} cells; put text with commas into quotation marks.")
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
            return ImportedLine(number, "unchanged", "", cells)
        try:
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
                together=together,
            )
        except MappingConflictError:
            if known.exists():  # made by somebody else since it was looked for
                return ImportedLine(number, "unchanged", "", cells)
            raise
    except MappingError as error:
        return ImportedLine(number, "error", str(error), cells)
    return ImportedLine(number, "created", "", cells)


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
    number = -1  # the header
    for line in mapping_lines(source):
        target.write(line)
        number += 1
    return number


def mapping_lines(source: str, *, whole_tags: bool = True) -> Iterator[str]:
    """All mappings as lines of a CSV file, header first.

    Args:
        source: name of the StEvE.
        whole_tags: whether whoever asks may see whole tags. If not, each is its last four characters, notes
            are left out because they may name one, and the lines do not stand in the order of the tags.
    """
    mappings = TagMapping.objects.filter(id_tag__source=source).select_related("id_tag")
    order = ("id_tag__folded", "valid_from") if whole_tags else ("pk",)
    return csv_lines(
        COLUMNS,
        (
            (
                mapping.id_tag.text if whole_tags else mask_id_tag(mapping.id_tag.text),
                mapping.customer_external_id,
                mapping.subscription_external_id or "",
                mapping.valid_from,
                mapping.valid_to,
                mapping.active,
                mapping.note if whole_tags else "",
            )
            for mapping in mappings.order_by(*order).iterator()
        ),
    )
