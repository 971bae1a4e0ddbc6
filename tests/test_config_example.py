"""The example configuration is complete and true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from cacheagent.config import Config, load_config, parse_config

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
DERIVED = {"storage.instances_dir"}


def _keys(text: str) -> set[str]:
    return {f"{name}.{key}" for name, keys in tomllib.loads(text).items() for key in keys}


def _with_all_keys() -> str:
    return re.sub(r"^#(?=[a-z_]+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)


def _value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def test_the_example_says_what_holds_without_a_file() -> None:
    """Starting with the example is the same as starting with an empty file."""
    assert load_config(EXAMPLE) == parse_config({})


def test_every_key_stands_in_the_example() -> None:
    """No key has to be looked up elsewhere, and none is there that does not exist."""
    assert _keys(_with_all_keys()) == set(Config.all_keys())


def test_only_keys_without_a_default_are_commented_out() -> None:
    """A # in front of a key means that it has no default of its own."""
    commented = set(Config.all_keys()) - _keys(EXAMPLE.read_text())
    assert {key for key in commented if _value(Config(), key) not in (None, ())} == DERIVED


def test_the_commented_examples_are_valid() -> None:
    """Whoever takes the # away everywhere gets a configuration that starts."""
    config = parse_config(tomllib.loads(_with_all_keys()))
    assert config.storage.instances_dir == Config().storage.instances_dir
    assert config.glance.endpoint == ("https://glance.example.org:9292",)
