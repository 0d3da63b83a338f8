"""Filters and tags of the portal's templates."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _

from ocpp_billing import clock
from ocpp_billing.portal import format as written
from ocpp_billing.portal.wording import STATES

if TYPE_CHECKING:
    from datetime import datetime

    from django.utils.safestring import SafeString

register = template.Library()

ICONS = Path(__file__).parent.parent / "static" / "vendor" / "tabler-icons-3.51.0"


@register.filter
def kwh(energy_wh: int) -> str:
    """Integer Wh as kWh: ``12,345.678``."""
    return written.kwh(energy_wh)


@register.filter
def scale_kwh(energy_wh: int) -> str:
    """A round number of Wh on a scale: ``500``, ``0.5``."""
    return written.kwh(energy_wh).rstrip("0").rstrip(".")


@register.filter
def state_label(state: str) -> str:
    """The word for a state."""
    return str(STATES[state].label)


@register.filter
def count(number: int) -> str:
    """A number of things: ``1,204``."""
    return written.count(number)


@cache
def _icon_body(name: str) -> str:
    text = (ICONS / f"{name}.svg").read_text(encoding="utf-8")
    inner = re.sub(r"^.*?<svg[^>]*>|</svg>\s*$", "", text, flags=re.DOTALL)
    return " ".join(inner.split())


@register.simple_tag
def icon(name: str, extra: str = "") -> SafeString:
    """A vendored icon, drawn inline; it says nothing that the word beside it does not say."""
    return format_html(
        '<svg class="icon {}" width="24" height="24" viewBox="0 0 24 24" fill="none" stroke="currentColor" '
        'stroke-width="2" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">{}</svg>',
        extra,
        mark_safe(_icon_body(name)),  # noqa: S308 - a file of this package, its hash is tested
    )


@register.simple_tag
def swatch(state: str) -> SafeString:
    """The colour and pattern of a state, as in the bar and the chart."""
    return format_html(
        '<svg class="swatch" width="14" height="14" aria-hidden="true">'
        '<rect width="14" height="14" rx="3" fill="url(#fill-{})"/></svg>',
        state,
    )


def _time(at: datetime, words: str, *, ticking: str = "") -> SafeString:
    relative = format_html(' data-relative="{}"', ticking) if ticking else ""
    return format_html(
        '<time datetime="{}" title="{}"{}>{}</time>', at.isoformat(), written.utc(at), relative, words
    )


@register.filter
def when(at: datetime | None) -> str:
    """An instant, relative within a day, with UTC on hover; it keeps counting while the page is open."""
    return (
        ""
        if at is None
        else _time(at, written.instant(at, clock.now()), ticking=_("%(age)s ago") % {"age": "{}"})
    )


@register.filter
def stamp(at: datetime | None) -> str:
    """An instant in the organisation's zone, with UTC on hover."""
    return "" if at is None else _time(at, written.stamp(at, clock.now()))


@register.filter
def age(since: datetime | None) -> str:
    """How long something has lasted, with the beginning (UTC) on hover."""
    return "" if since is None else _time(since, written.age(since, clock.now()))


@register.filter
def lasted(run: Any) -> str:
    """How long a run took; empty while it has not ended."""
    if run.started_at is None or run.ended_at is None:
        return ""
    return written.duration(run.ended_at - run.started_at)
