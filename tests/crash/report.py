"""What was tried, for the summary at the end."""

from __future__ import annotations

from collections import Counter

import pytest

KILLED = pytest.StashKey[Counter[str]]()
"""The failpoints at which daemons were killed, and how many, in the order they are reached."""
