"""Keystone and Glance as processes: their configuration, their start, their end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.openstack.software import Software, connection

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

START_TIMEOUT = 120
STOP_TIMEOUT = 15
THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a test may want otherwise.

    ``token_seconds`` is how long a token of Keystone lives. ``token_cache_seconds`` is how long
    Glance believes what Keystone said of a token; -1 makes it ask each time.
    ``require_format_match`` makes Glance refuse bytes that are not of the ``disk_format``.
    """

    token_seconds: int = 3600
    token_cache_seconds: int = 300
    require_format_match: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One pair of servers: its folder, and its URLs (Keystone's v3 API; Glance, no version)."""

    folder: Path
    software: Software
    keystone_url: str
    glance_url: str

    @property
    def store(self) -> Path:
        """The folder where Glance keeps the data of images, each in a file named by its id."""
        return self.folder / "store"


def lay_out(place: Place, settings: Settings, glance_password: str) -> None:
    """Fill the folder: databases, keys and configuration."""
    for name in ("store", "staging", "tasks", "lock", "etc/keystone", "etc/glance"):
        (place.folder / name).mkdir(parents=True)
    for service in ("keystone", "glance"):
        shutil.copy(place.software.database(service), place.folder / f"{service}.db")
        # Said in full, as the rules are also looked for in /etc; these change none.
        (place.folder / f"etc/{service}/policy.yaml").write_text("{}\n")
    shutil.copytree(place.software.keys(), place.folder / "keys")
    (place.folder / "etc/keystone/keystone.conf").write_text(_keystone_conf(place, settings))
    conf = _glance_conf(place, settings, glance_password)
    (place.folder / "etc/glance/glance-api.conf").write_text(conf)


def _keystone_conf(place: Place, settings: Settings) -> str:
    # Of bcrypt the fewest rounds, and no password longer than it can take: else Keystone warns.
    keys = place.folder / "keys"
    return f"""
[database]
connection = {connection(place.folder / "keystone.db")}
[token]
expiration = {settings.token_seconds}
[fernet_tokens]
key_repository = {keys}
[fernet_receipts]
key_repository = {keys}
[credential]
key_repository = {keys}
[identity]
password_hash_rounds = 4
max_password_length = 72
[oslo_policy]
policy_file = {place.folder}/etc/keystone/policy.yaml
"""


def _glance_conf(place: Place, settings: Settings, password: str) -> str:
    return f"""
[DEFAULT]
public_endpoint = {place.glance_url}
worker_self_reference_url = {place.glance_url}
enabled_backends = local:file
image_cache_dir = {place.folder}/cache
[database]
connection = {connection(place.folder / "glance.db")}
[glance_store]
default_backend = local
[local]
filesystem_store_datadir = {place.store}
[os_glance_staging_store]
filesystem_store_datadir = {place.folder}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {place.folder}/tasks
[image_format]
require_image_format_match = {settings.require_format_match}
[paste_deploy]
flavor = keystone
config_file = {place.software.paste_file}
[oslo_policy]
policy_file = {place.folder}/etc/glance/policy.yaml
[oslo_concurrency]
lock_path = {place.folder}/lock
[keystone_authtoken]
www_authenticate_uri = {place.keystone_url}
auth_url = {place.keystone_url}
auth_type = password
username = glance
password = {password}
project_name = service
user_domain_id = default
project_domain_id = default
service_token_roles = service
service_token_roles_required = true
token_cache_time = {settings.token_cache_seconds}
"""


@contextmanager
def served(place: Place, service: str, listening: socket.socket) -> Iterator[None]:
    """Run ``service`` under uWSGI while the block lasts; it inherits a socket that listens.

    So no port is looked for that another process could take first, and whoever connects before
    the server is ready waits for it. The socket is closed here: when the server has ended its
    clients are refused.
    """
    log = place.folder / f"{service}.log"
    with listening, log.open("wb") as output:
        process = subprocess.Popen(
            _uwsgi(place, listening),
            env={**os.environ, **_environment(place, service)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[listening.fileno()],
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(STOP_TIMEOUT)


def await_answer(url: str, log: Path) -> None:
    """Wait until ``url`` answers; raise ``RuntimeError`` with the end of ``log`` if it fails."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(url, timeout=START_TIMEOUT).close()
    except OSError as error:
        said = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{url}: {error}; its log ends with:\n{said}") from error


def _uwsgi(place: Place, listening: socket.socket) -> list[str]:
    # uWSGI speaks HTTP/1.1 and closes each connection, so it has to say that it will.
    return [
        str(place.software.program("uwsgi")),
        *("--http-socket", f"fd://{listening.fileno()}"),
        *("--virtualenv", str(place.software.folder / "venv")),
        *("--pythonpath", str(Path(__file__).parent / "wsgi")),
        *("--module", "locking_wsgi:application", "--need-app"),
        *("--enable-threads", "--threads", str(THREADS), "--buffer-size", "65535"),
        *("--socket-timeout", "120", "--add-header", "Connection: close"),
    ]


def _environment(place: Place, service: str) -> dict[str, str]:
    return {
        f"OS_{service.upper()}_CONFIG_DIR": str(place.folder / "etc" / service),
        "SERVED_MODULE": f"{service}.wsgi.api",
        # eventlet, which Glance still imports, warns of its own end at every start.
        "PYTHONWARNINGS": "ignore",
    }
