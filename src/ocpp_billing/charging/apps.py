"""Django app configuration."""

from django.apps import AppConfig


class ChargingConfig(AppConfig):
    """See the package's modules."""

    name = "ocpp_billing.charging"
    label = "charging"
