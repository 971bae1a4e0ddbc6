"""The servers' own venv, and empty databases: made once and kept for later runs."""

from __future__ import annotations

import base64
import os
import secrets
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cache import CACHE_DIR, cached, key_of
from tests.needs import require_programs

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
BUSY_TIMEOUT = 60
"""Seconds that a transaction waits for its turn with SQLite's write lock."""


@dataclass(frozen=True, slots=True)
class Software:
    """What stays from run to run, in ``folder``: a venv, and databases with their tables."""

    folder: Path

    @property
    def paste_file(self) -> Path:
        """Glance's own description of its pipelines; it is installed beside the code."""
        return self.folder / "venv/etc/glance/glance-api-paste.ini"

    @property
    def admin_password(self) -> str:
        """The password of the administrator that the database of Keystone starts with."""
        return (self.folder / "admin-password").read_text()

    def program(self, name: str) -> Path:
        """Return the path of a program in the venv."""
        return self.folder / "venv/bin" / name

    def database(self, service: str) -> Path:
        """Return the path of a database to copy: ``keystone`` or ``glance``."""
        return self.folder / f"{service}.db"

    def keys(self) -> Path:
        """Return the path of a Fernet key repository to copy."""
        return self.folder / "keys"


def software() -> Software:
    """Install the servers on first use, which takes a minute; skip where that cannot be."""
    require_programs("cc")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cached("openstack", key_of([Path(__file__), REQUIREMENTS, version]), _build)
    return Software(folder)


def _build(folder: Path) -> None:
    venv = folder / "venv"
    _run(sys.executable, "-m", "venv", str(venv))
    _run(str(venv / "bin/pip"), "install", "-q", "--no-deps", "-r", str(REQUIREMENTS))
    made = Software(folder)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda prepare: prepare(made), (_prepare_keystone, _prepare_glance)))


def _prepare_keystone(made: Software) -> None:
    """Make Keystone's keys and database, with an administrator in it."""
    keys = made.keys()
    keys.mkdir(mode=0o700)
    # A key repository: the file with the highest number signs, 0 is the next to come.
    for number in ("0", "1"):
        (keys / number).write_bytes(base64.urlsafe_b64encode(secrets.token_bytes(32)))
    config = made.folder / "keystone.conf"
    config.write_text(
        f"[database]\nconnection = {connection(made.database('keystone'))}\n"
        f"[fernet_tokens]\nkey_repository = {keys}\n"
        f"[fernet_receipts]\nkey_repository = {keys}\n"
        f"[credential]\nkey_repository = {keys}\n"
        "[identity]\npassword_hash_rounds = 4\nmax_password_length = 72\n"
    )
    manage = [str(made.program("keystone-manage")), "--config-file", str(config)]
    _run(*manage, "db_sync")
    password = made.folder / "admin-password"
    password.write_text(secrets.token_hex(12))
    _run(*manage, "bootstrap", "--bootstrap-password", password.read_text())
    _write_ahead(made.database("keystone"))


def _prepare_glance(made: Software) -> None:
    config = made.folder / "glance.conf"
    config.write_text(f"[database]\nconnection = {connection(made.database('glance'))}\n")
    _run(str(made.program("glance-manage")), "--config-file", str(config), "db_sync")
    _write_ahead(made.database("glance"))


def connection(database: Path) -> str:
    """Return SQLAlchemy's URL of a SQLite file."""
    return f"sqlite:///{database}?timeout={BUSY_TIMEOUT}"


def _write_ahead(database: Path) -> None:
    """Let readers go on while somebody writes; the file remembers it."""
    opened = sqlite3.connect(database)
    opened.execute("PRAGMA journal_mode=WAL").fetchone()
    opened.close()


def _run(*command: str) -> None:
    # eventlet, which Glance still imports, warns of its own end at every start.
    environment = {
        "PIP_CACHE_DIR": str(CACHE_DIR / "pip"),
        **os.environ,
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:].decode(errors="replace")
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{said}")
