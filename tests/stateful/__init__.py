"""A model of the whole agent, driven at random, and what has to hold after every step."""

import pytest

pytest.register_assert_rewrite(
    *(
        f"tests.stateful.{name}"
        for name in ("care", "checks", "machine", "requests", "steps", "world")
    )
)
