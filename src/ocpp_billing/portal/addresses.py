"""What no address of the portal may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from django.core.exceptions import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

# The API says for itself what is wrong with a query (422, as JSON).
OWN_ANSWERS = "/api/"


class NoNulMiddleware:
    """Refuse a NUL character in a query: PostgreSQL takes it in no text, and no form of ours sends it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer 400 to it, and everything else as ever.

        Raises:
            BadRequest: which Django turns into our page for it.
        """
        if "\0" in unquote_plus(request.META.get("QUERY_STRING", "")) and not request.path.startswith(
            OWN_ANSWERS
        ):
            raise BadRequest("there is a NUL character in the query")
        return self.get_response(request)
