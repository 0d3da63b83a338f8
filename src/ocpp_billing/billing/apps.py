"""Django app configuration."""

from django.apps import AppConfig


class BillingConfig(AppConfig):
    """See the package's modules."""

    name = "ocpp_billing.billing"
    label = "billing"
