"""The WSGI application of Keystone or Glance, with SQLite transactions that queue up.

Both read first and write later in one transaction, which oslo.db opens by a plain ``BEGIN``.
SQLite then lets several begin, and when two of them want to write it fails one at once
("database is locked"): waiting could not help, as what that one has read is out of date.
``BEGIN IMMEDIATE`` asks for the write lock at the start, and there waiting helps.

uWSGI imports this module with the servers' own interpreter; the environment variable
``SERVED_MODULE`` names the module that has the application.
"""

# mypy: disable-error-code="import-not-found,untyped-decorator"
# SQLAlchemy is a part of the servers, not of the tests.

from __future__ import annotations

import importlib
import os

from sqlalchemy import event
from sqlalchemy.engine import Engine


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def lock_at_the_start(
    _connection: object, _cursor: object, statement: str, parameters: object, *_more: object
) -> tuple[str, object]:
    """Replace the statement that opens a transaction; pass on every other."""
    return "BEGIN IMMEDIATE" if statement == "BEGIN" else statement, parameters


application = importlib.import_module(os.environ["SERVED_MODULE"]).application
