"""What an operator may write into the configuration, and what is said about mistakes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cacheagent.config import RELOADABLE, WITHOUT_EFFECT, Config, load_config, parse_config
from cacheagent.configtypes import HostPort
from cacheagent.errors import ConfigError


def _parse(text: str) -> Config:
    return parse_config(tomllib.loads(text))


def test_values_become_bytes_seconds_modes_and_paths() -> None:
    """The agent computes with bytes and seconds, however they were written."""
    config = _parse(
        """
        api.socket_mode = 0o600
        api.listen = "[::1]:9876"
        storage.state_dir = "/srv/cache"
        storage.disk_mode = "0640"
        glance.endpoint = "https://glance.example.org/image/"
        glance.connect_timeout = 2
        glance.stall_timeout = "1m30s"
        images.max_size = "50GiB"
        metrics.listen = ""
        """
    )
    assert config.api.socket_mode == 0o600
    assert config.api.listen == HostPort("::1", 9876)
    assert config.storage.instances_dir == Path("/srv/cache/instances")
    assert config.storage.disk_mode == 0o640
    assert config.glance.endpoint == ("https://glance.example.org/image",)
    assert (config.glance.connect_timeout, config.glance.stall_timeout) == (2.0, 90.0)
    assert config.images.max_size == 50 << 30
    assert config.metrics.listen is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('api.sockt = "/x"', "api.sockt: unknown key (did you mean api.socket?)"),
        ("glanc.retries = 3", "glanc: unknown key (did you mean glance?)"),
        ('state_dir = "/x"', "state_dir: unknown key (did you mean storage.state_dir?)"),
        ("colour = 1", "colour: unknown key"),
        ('glance.retries = "5"', 'glance.retries: must be a whole number, and not "5"'),
        ("glance.retries = 1.5", "glance.retries: must be a whole number, and not 1.5"),
        ('images.verify_signatures = "yes"', "images.verify_signatures: must be true or false"),
        ("glance.stall_timeout = true", "glance.stall_timeout: must be a number of seconds"),
        ("glance.stall_timeout = 0", "glance.stall_timeout: must be greater than 0"),
        ("glance.access_ttl = inf", "glance.access_ttl: must not be negative nor without end"),
        ('storage.scan_dirs = "/x"', "storage.scan_dirs: must be a list"),
        ('qemu.qmp_sockets = ["x/*"]', "qemu.qmp_sockets.0: must be an absolute path"),
        ('eviction.min_age = "ten"', "eviction.min_age: is not a duration"),
        ("images.max_size = 1.5", "images.max_size: must be a number of bytes"),
        ("eviction.min_free = -1", "eviction.min_free: must not be negative"),
        ('images.max_size = "9GG"', "images.max_size: is not a size"),
        ('qemu.cpu_time_limit = "1ms"', 'qemu.cpu_time_limit: must be at least "1s"'),
        ('qemu.memory_limit = "20MiB"', 'qemu.memory_limit: must be at least "64MiB"'),
        ("api.socket_mode = 660", 'api.socket_mode: must be an octal file mode, as "0660"'),
        ('storage.disk_mode = "0689"', "storage.disk_mode: must be an octal file mode"),
        ('storage.state_dir = "var"', "storage.state_dir: must be an absolute path"),
        ('api.listen = "9876"', "api.listen: is not host:port"),
        ('api.listen = "::1:9876"', "api.listen: is not host:port"),
        ('api.listen = "127.0.0.1:http"', "api.listen: does not end in a port number"),
        ('api.listen = "127.0.0.1:70000"', "api.listen: does not end in a port number"),
        ('api.listen = "[::x]:1"', "api.listen: "),
        ("metrics.listen = 9877", "metrics.listen: must be a text"),
        ('glance.endpoint = "glance:9292"', "glance.endpoint.0: is not the address of an HTTP"),
        (
            'glance.endpoint = "http://u:pass@host:1"',
            "glance.endpoint.0: must not hold a user name",
        ),
        ('images.allowed_formats = ["raw", "qed"]', "images.allowed_formats.1: must be raw, "),
        ("images.allowed_formats = []", "images.allowed_formats: "),
        ('overlay.options = "size=1G"', "overlay.options: must not name size"),
        (
            'overlay.options = "cluster_size=128k, preallocation=metadata"',
            "overlay.options: must not name preallocation: an overlay has nothing",
        ),
        ('log.level = "loud"', "log.level: must be debug, "),
        ("log = 3", "log: must be a section with keys of its own"),
    ],
)
def test_a_mistake_names_its_key(text: str, sentence: str) -> None:
    """An operator sees at once which key is wrong, and what would be right."""
    with pytest.raises(ConfigError) as caught:
        _parse(text)
    assert str(caught.value).startswith(sentence)


def test_no_preallocation_may_be_said() -> None:
    """What QEMU does anyway does no harm."""
    options = "preallocation=off,cluster_size=128k"
    assert _parse(f'overlay.options = "{options}"').overlay.options == options


TLS = 'api.tls_cert = "/c"\napi.tls_key = "/k"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "eviction.low_watermark = 85",
            "eviction.low_watermark (85) must be below eviction.high_watermark (85)",
        ),
        (
            'eviction.max_size = "1GiB"\neviction.min_keep = "2GiB"',
            "eviction.min_keep must not be above eviction.max_size",
        ),
        (
            'eviction.min_age = "2h"\neviction.max_idle = "1h"',
            "eviction.max_idle must not be below eviction.min_age",
        ),
        ('glance.auth = "none"', 'glance.auth = "none" needs glance.endpoint'),
        (
            'glance.auth = "none"\nglance.endpoint = "http://127.0.0.1:1"\nglance.cloud = "a"',
            'glance.cloud contradicts glance.auth = "none"',
        ),
        ('api.tls_cert = "/c"', "api.tls_cert and api.tls_key go together"),
        ('api.tls_key = "/k"', "api.tls_cert and api.tls_key go together"),
        ('api.tls_client_ca = "/ca"', "api.tls_client_ca needs api.tls_cert"),
        ('api.listen = "0.0.0.0:1"', "api.listen 0.0.0.0:1 is not loopback: set api.tls_cert"),
        (
            TLS + 'api.listen = "[::]:1"',
            "api.listen [::]:1 is not loopback: set api.tls_client_ca or api.token_file",
        ),
        (
            'storage.state_dir = "/a/b"\nstorage.instances_dir = "/a"',
            "storage.instances_dir must not hold storage.state_dir",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_named(text: str, sentence: str) -> None:
    """What cannot work together does not start, and both keys are in the message."""
    with pytest.raises(ConfigError) as caught:
        _parse(text)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "text",
    [
        'api.listen = "localhost:1"',
        TLS + 'api.listen = "host.example.org:1"\napi.token_file = "/t"',
        TLS + 'api.listen = "0.0.0.0:1"\napi.tls_client_ca = "/ca"',
        'glance.auth = "none"\nglance.endpoint = ["http://127.0.0.1:1", "http://127.0.0.1:2"]',
        'eviction.max_idle = 0\neviction.min_age = "1d"',
        'api.listen = ""',
    ],
)
def test_what_belongs_together_is_accepted(text: str) -> None:
    """The guards let through what is guarded, and what needs no guard."""
    assert isinstance(_parse(text), Config)


def test_all_mistakes_are_told_at_once() -> None:
    """An operator does not mend a file one message at a time."""
    with pytest.raises(ConfigError, match=r"glance\.retries: .*; log\.level: "):
        _parse('glance.retries = -1\nlog.level = ""')


def test_a_wrong_state_dir_is_told_once() -> None:
    """A default that follows from a wrong key is no second mistake."""
    with pytest.raises(ConfigError) as caught:
        _parse('storage.state_dir = "here"')
    assert str(caught.value) == "storage.state_dir: must be an absolute path"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"a = ", "is not TOML: "),
        (b"\xff = 1", "is not TOML: "),
        (b"a = 1", "a: unknown key"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    """The message begins with the path of the file."""
    path = tmp_path / "agent.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {sentence}")


def test_keys_without_effect_are_named_only_where_they_are_set() -> None:
    """An operator learns that a key does nothing yet, and is not bothered by defaults."""
    assert _parse(
        'glance.mirrors = ["http://mirror.test"]\neviction.min_free = "1GiB"'
    ).without_effect() == ("glance.mirrors",)
    assert Config().without_effect() == ()
    assert _parse("glance.mirrors = []").without_effect() == ()


def test_the_lists_of_keys_name_keys_that_exist() -> None:
    """No list keeps a key that was renamed."""
    assert set(Config.all_keys()) > WITHOUT_EFFECT | RELOADABLE


def test_a_reload_takes_over_what_can_change_and_names_the_rest() -> None:
    """A running daemon changes its log at once, and its folder at the next start."""
    old = _parse('log.level = "info"\nstorage.state_dir = "/a"\nglance.retries = 1')
    new = _parse('log.level = "debug"\nstorage.state_dir = "/b"\nglance.retries = 1')
    config, changed, needs_restart = old.reload_from(new)
    assert changed == ("log.level",)
    assert needs_restart == ("storage.instances_dir", "storage.state_dir")
    assert config.log.level == "debug"
    assert config.storage == old.storage


def test_a_reload_forgets_keys_that_were_taken_out() -> None:
    """What is no longer set counts as not set, for the keys without effect too."""
    mirrored = 'glance.mirrors = ["http://mirror.test"]'
    merged = _parse(f"eviction.min_age = 1\n{mirrored}").reload_from(Config()).config
    assert merged.without_effect() == ("glance.mirrors",)
    assert merged.eviction == Config().eviction


def test_an_address_is_written_as_it_is_read() -> None:
    """An address can go from a message into the file."""
    for text in ("127.0.0.1:80", "[::1]:80", "host:80"):
        assert str(HostPort.parse(text)) == text
