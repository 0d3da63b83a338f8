"""Filters and tags of the portal's templates."""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _

from ocpp_billing import clock
from ocpp_billing.accounts.models import Role
from ocpp_billing.local_time import day_and_time
from ocpp_billing.portal import acts
from ocpp_billing.portal import format as written
from ocpp_billing.portal.access import seen_tag
from ocpp_billing.portal.browsers import describe_browser
from ocpp_billing.portal.wording import STATES

if TYPE_CHECKING:
    from datetime import timedelta

    from django.forms import BoundField
    from django.template import Context
    from django.utils.safestring import SafeString

    from ocpp_billing.accounts.models import User
    from ocpp_billing.charging.models import ChargingSession
    from ocpp_billing.sync.models import SyncRun, SyncStep

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
def has_role(user: User, role: Role) -> bool:
    """Whether a person may do what needs this role."""
    return role.within(Role(user.role))


@register.filter
def state_means(state: str) -> str:
    """What a state means for the money."""
    return str(STATES[state].means)


@register.filter
def moment(text: str) -> datetime:
    """An instant that was written as ISO 8601, as in the ledger's JSON."""
    return datetime.fromisoformat(text)


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


_CONTROLS = {"select": "form-select", "selectmultiple": "form-select", "checkbox": "form-check-input"}


@register.simple_tag
def control(
    field: BoundField, *, autocomplete: str = "", autofocus: bool = False, hint: str = ""
) -> SafeString:
    """The control of a form field, in our look, tied to its hint and its errors for those who listen."""
    widget = field.field.widget
    kind = getattr(widget, "input_type", "")
    attrs: dict[str, Any] = {"class": _CONTROLS.get(kind, "form-control")}
    if autocomplete:
        attrs["autocomplete"] = autocomplete
    if autofocus:
        attrs["autofocus"] = True
    if field.errors:
        attrs["class"] += " is-invalid"
        attrs |= {"aria-invalid": "true", "aria-describedby": f"{field.id_for_label}-errors"}
    elif hint or field.help_text:
        attrs["aria-describedby"] = f"{field.id_for_label}-hint"
    # The label says it; a placeholder that repeats it in other words is allauth's own.
    attrs["placeholder"] = False
    return field.as_widget(attrs=widget.attrs | attrs)


@register.inclusion_tag("portal/parts/state.html")
def state(code: str) -> dict[str, Any]:
    """A state: its colour and pattern, its shape and its word."""
    return {"words": STATES[code]}


@register.filter
def shorten(text: str, length: int = 24) -> str:
    """A long id shortened in the middle, where ids differ least: ``steve:main:12…9f:1``."""
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[-end:]}"


@register.inclusion_tag("portal/parts/copy.html")
def copyable(text: str | int, length: int = 24) -> dict[str, Any]:
    """An id in monospace, shortened in the middle, with a button that copies the whole."""
    return {"text": str(text), "length": length}


@register.simple_tag(takes_context=True)
def id_tag(context: Context, text: str) -> str:
    """An id tag as whoever looks may see it: a credential is whole for operators only."""
    return seen_tag(context["user"], text)


@register.simple_tag(takes_context=True)
def offered_acts(context: Context, session: ChargingSession, *, sent: bool) -> list[dict[str, Any]]:
    """The acts that are open to whoever looks at a session, sent to Lago or not; none for viewers."""
    request = context["request"]
    if not context["user"].is_operator:
        return []
    return acts.offered_acts(session, back=request.get_full_path(), sent=sent)


def _time(at: datetime, words: str, *, ticking: str = "") -> SafeString:
    relative = format_html(' data-relative="{}"', ticking) if ticking else ""
    return format_html(
        '<time datetime="{}" title="{}"{}>{}</time>', at.isoformat(), written.utc(at), relative, words
    )


@register.simple_tag
def age_units() -> str:
    """How the page's script counts ages on: seconds of each unit, and how so many of it are said."""
    return json.dumps([[unit_s, text % {"n": "{}"}] for unit_s, text in written.age_units()])


@register.filter
def browser(user_agent: str) -> str:
    """A browser in words: ``Firefox on Linux``."""
    return describe_browser(user_agent)


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
def full_stamp(at: datetime) -> SafeString:
    """An instant with its year, for what must not be misread."""
    return _time(at, day_and_time(at))


@register.filter
def local_input(at: datetime) -> str:
    """An instant as a field for date and time takes it, in the organisation's zone."""
    return f"{timezone.localtime(at):%Y-%m-%dT%H:%M:%S}"


@register.filter
def clock_time(at: datetime) -> SafeString:
    """The time of day to the second in the organisation's zone, with UTC on hover: for logs."""
    return _time(at, f"{timezone.localtime(at):%H:%M:%S}")


@register.filter
def age(since: datetime | None) -> str:
    """How long something has lasted, with the beginning (UTC) on hover."""
    return "" if since is None else _time(since, written.age(since, clock.now()))


@register.filter
def duration(span: timedelta) -> str:
    """How long something took, in the two units that matter."""
    return written.duration(span)


@register.filter
def lasted(run: SyncRun | SyncStep) -> str:
    """How long a run or one of its steps took; empty while it has not ended."""
    if run.started_at is None or run.ended_at is None:
        return ""
    return written.duration(run.ended_at - run.started_at)
