"""Where a person goes after an act: back to where they came from, and never to another site."""

from __future__ import annotations

from django.utils.http import url_has_allowed_host_and_scheme


def way_back(given: str | None, default: str) -> str:
    """The path that a form or a link asked for as ``next``, or the default when it is none of this site.

    Only an absolute path counts: anything else is a name that a redirect would look up among our views.
    """
    if given and given.startswith("/") and url_has_allowed_host_and_scheme(given, allowed_hosts=None):
        return given
    return default
