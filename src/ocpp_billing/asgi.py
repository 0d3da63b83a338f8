"""The web application as an ASGI callable, for uvicorn."""

import logging
import os

from django.conf import settings
from django.core.asgi import get_asgi_application

from ocpp_billing.log import configure_logging
from ocpp_billing.request_size import limit_requests
from ocpp_billing.unix_socket import name_clients

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ocpp_billing.settings")
application = limit_requests(name_clients(get_asgi_application()))

if not logging.getLogger().handlers:  # one of several web processes: uvicorn starts each of them afresh
    configure_logging(level=settings.CONFIG.log_level, json_lines=settings.CONFIG.log_format == "json")
