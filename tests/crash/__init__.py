"""A daemon that is killed at every step it takes."""
