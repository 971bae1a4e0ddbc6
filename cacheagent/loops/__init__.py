"""Background loops: they decide when, the service decides what."""
