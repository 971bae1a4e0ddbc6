"""Tests: each shows something that a user of cacheagent cares about."""
