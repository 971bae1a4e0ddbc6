"""What the servers' own interpreter imports; the tests do not."""
