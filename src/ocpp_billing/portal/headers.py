"""Headers that every answer of ours carries and for which Django has no setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

# What a page may ask the browser for. Nothing is needed but the clipboard of the copy buttons, so a script
# that got in all the same can neither watch, listen, locate nor pay.
PERMISSIONS = ", ".join(
    f"{feature}=()"
    for feature in (
        "accelerometer",
        "autoplay",
        "bluetooth",
        "browsing-topics",
        "camera",
        "clipboard-read",
        "display-capture",
        "encrypted-media",
        "fullscreen",
        "geolocation",
        "gyroscope",
        "hid",
        "idle-detection",
        "local-fonts",
        "magnetometer",
        "microphone",
        "midi",
        "payment",
        "picture-in-picture",
        "publickey-credentials-get",
        "screen-wake-lock",
        "serial",
        "usb",
        "web-share",
        "xr-spatial-tracking",
    )
)


class HeadersMiddleware:
    """Adds what is missing; a view that says something else itself keeps it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer, with the headers."""
        response = self.get_response(request)
        response.headers.setdefault("Permissions-Policy", PERMISSIONS)
        # No other site embeds an answer of ours, be it a picture, a script or a file.
        response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        # Names, tags and money are for the person who asked. Static files say for themselves how long
        # they last.
        response.headers.setdefault("Cache-Control", "private, no-store")
        return response
