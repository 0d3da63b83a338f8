from django.db import migrations, models
from django.db.models import Q

STATES = ("queued", "accepted", "confirmed", "rejected", "held", "excluded", "void")


def choices(*values: str) -> list[tuple[str, str]]:
    return [(value, value.capitalize()) for value in values]


class Migration(migrations.Migration):
    """Refunds that were given by a credit note count as events that are never sent."""

    dependencies = [("billing", "0004_given_up")]

    operations = [
        migrations.RemoveConstraint("usageevent", "usage_event_state_known"),
        migrations.AlterField(
            "ruling",
            "kind",
            models.CharField(choices=choices("accept", "exclude", "assign", "credit"), max_length=8),
        ),
        migrations.AlterField(
            "usageevent",
            "kind",
            models.CharField(choices=choices("original", "correction", "move", "credit"), max_length=10),
        ),
        migrations.AlterField(
            "usageevent", "state", models.CharField(choices=choices(*STATES), max_length=9)
        ),
        migrations.AddConstraint(
            "usageevent",
            models.CheckConstraint(condition=Q(state__in=STATES), name="usage_event_state_known"),
        ),
    ]
