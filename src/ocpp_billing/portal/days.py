"""Days that are typed into a form: such as the calendar of every zone has."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

EARLIEST, LATEST = date(1990, 1, 1), date(2200, 1, 1)


def validate_day(given: date | datetime) -> None:
    """Refuse what lies so far away that it is a slip, or that a zone's calendar ends before it.

    Raises:
        ValidationError: with what to enter.
    """
    day = given.date() if isinstance(given, datetime) else given
    if not EARLIEST <= day < LATEST:
        raise ValidationError(_("A day between 1990 and 2200."))


def day_field(label: Any) -> forms.DateField:
    """A day that may be left out."""
    return forms.DateField(
        label=label,
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
        input_formats=["%Y-%m-%d"],
        error_messages={"invalid": gettext_lazy("A day such as 2026-11-30.")},
        validators=[validate_day],
    )
