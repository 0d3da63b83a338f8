"""OCPP Billing Sync: the bridge between StEvE and Lago."""

__version__ = "0.1.0"
