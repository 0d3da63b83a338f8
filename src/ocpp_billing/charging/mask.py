"""An id tag is a credential: whoever need not act on it sees its last four characters."""

from __future__ import annotations

SHOWN = 4
# In place of words about an identity conflict, which name tags.
IDENTITY_IN_DOUBT = "The tag is not who it was in StEvE."


def mask_id_tag(text: str) -> str:
    """The tag as viewers see it, such as ``…7F3A``; of a short tag nothing is left to see."""
    return f"…{last4(text)}"


def last4(text: str) -> str:
    """The last four characters of a tag; empty when that would be all of it."""
    return text[-SHOWN:] if len(text) > SHOWN else ""
