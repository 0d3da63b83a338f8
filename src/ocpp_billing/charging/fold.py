"""One tag, however it is spelled."""

from __future__ import annotations

import unicodedata

# Of a tag `t`: its last four characters are `end`, and it has more, so that nobody finds out a tag by asking.
ENDS_SQL = "lower(right(t.text, 4)) = %(end)s AND length(t.text) > 4"


def fold_id_tag(text: str) -> str:
    """Fold an id tag as StEvE's database compares it.

    StEvE's columns have MySQL's ``utf8_unicode_ci``: upper and lower case, accents and trailing blanks do
    not count, so ``tag-alice`` and ``TAG-ALICE `` are one tag.
    """
    if text.isascii():
        return text.rstrip(" ").lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char)).casefold().rstrip(" ")
