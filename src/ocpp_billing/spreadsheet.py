"""CSV for people with spreadsheets: a cell that looks like a formula is never taken for one.

A name such as ``=HYPERLINK(…)`` in a tag or a customer would otherwise be carried out by whoever opens the
file (CSV injection). Such a cell gets an apostrophe in front, which spreadsheets do not show;
:func:`read_cell` takes it off again, so that a file of ours can be read back.

Where people write 1,5 for one and a half, spreadsheets part the cells of a file at semicolons, whatever it
says, and a quotation mark in the middle of such a cell is none: what follows a semicolon, a tab or the end of
a line inside a cell of ours is the beginning of a cell of theirs, and gets its apostrophe, too.
"""

from __future__ import annotations

import csv
import io
import re
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from decimal import Decimal

    Cell = str | int | Decimal | datetime | bool | None

# ASCII and full-width signs that begin a formula, control characters that hide one, and the apostrophe
# itself, so that what is read back is what was written.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")  # noqa: RUF001
# Inside a cell: where another cell may begin for a spreadsheet, and what would then be a formula.
_INSIDE = r"""(?=[ "]*[=+\-@＝＋－＠'])"""  # noqa: RUF001
_ANOTHER_CELL = re.compile(rf"([;\t\r\n]){_INSIDE}")
_ANOTHER_WRITTEN = re.compile(rf"([;\t\r\n])'{_INSIDE}")


def write_cell(value: Cell) -> str:
    """A value as the text of a cell. Only text is made harmless: a negative number stays a number."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        text = _ANOTHER_CELL.sub(r"\1'", value)
        return f"'{text}" if _begins_like_formula(value) else text
    return str(value)


def read_cell(text: str) -> str:
    """The text that :func:`write_cell` was given, without blanks around it."""
    text = text.strip()
    if text.startswith("'") and _begins_like_formula(text[1:]):
        text = text[1:]
    return _ANOTHER_WRITTEN.sub(r"\1", text)


def _begins_like_formula(text: str) -> bool:
    return text.lstrip(" ").startswith(FORMULA_STARTS)  # some programs look past blanks


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
    """Lines of a CSV file, header first, one at a time."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")

    def line(cells: Sequence[str]) -> str:
        writer.writerow(cells)
        text = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return text

    yield line(list(header))
    for row in rows:
        yield line([write_cell(value) for value in row])
