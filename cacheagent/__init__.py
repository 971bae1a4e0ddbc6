"""Image cache agent for compute hosts: one download per Glance image, a disk in milliseconds."""

__version__ = "0.1.0"
