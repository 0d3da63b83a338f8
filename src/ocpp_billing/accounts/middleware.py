"""Every page demands sign-in, unless its view says otherwise (``login_not_required``)."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.http import HttpResponse
from django.shortcuts import resolve_url
from django.utils.http import urlencode

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

# The API answers for itself: a bearer token or a session, and 401 as JSON.
OWN_AUTHENTICATION = "api/"


class SignInRequiredMiddleware(LoginRequiredMiddleware):
    """Closed by default: a page that somebody forgot to protect is protected."""

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[Any, ...],
        view_kwargs: dict[str, Any],
    ) -> HttpResponseBase | None:
        """Let signed-in people and open views pass; send everybody else to the sign-in page."""
        if request.resolver_match is not None and request.resolver_match.route.startswith(OWN_AUTHENTICATION):
            return None
        return super().process_view(request, view_func, view_args, view_kwargs)

    def handle_no_permission(  # type: ignore[override]  # Django itself takes any response
        self, request: HttpRequest, view_func: Callable[..., HttpResponseBase]
    ) -> HttpResponseBase:
        """Redirect to sign-in, in the way that whoever asked understands.

        A script that refreshes part of a page must not put a sign-in form into it, and an event stream
        cannot be redirected: the session has ended, the whole page goes to sign-in.
        """
        if request.headers.get("HX-Request") == "true":
            try:
                current = urlsplit(request.headers.get("HX-Current-URL", "/"))
                back = current.path + (f"?{current.query}" if current.query else "")
            except ValueError:  # no address at all, which no page of ours sends
                back = "/"
            target = f"{resolve_url(self.get_login_url(view_func))}?{urlencode({'next': back})}"
            return HttpResponse(status=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": target})
        if request.headers.get("Accept") == "text/event-stream":
            return HttpResponse(status=HTTPStatus.UNAUTHORIZED)
        return super().handle_no_permission(request, view_func)
