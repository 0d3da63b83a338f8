"""Django app configuration."""

from django.apps import AppConfig


class PortalConfig(AppConfig):
    """See the package's modules."""

    name = "ocpp_billing.portal"
    label = "portal"
