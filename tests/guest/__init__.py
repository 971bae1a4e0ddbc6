"""A real Debian as a guest: how its image is made, and how it is run and told what to do."""

from tests.guest.image import guest_image
from tests.guest.machine import Guest, GuestFailedError, booted_guest

__all__ = ["Guest", "GuestFailedError", "booted_guest", "guest_image"]
