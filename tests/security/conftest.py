"""The people of the portal's tests, for these tests, too."""

from tests.portal.conftest import at, configured, now, signed_in

__all__ = ["at", "configured", "now", "signed_in"]
