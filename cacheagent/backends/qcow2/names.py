"""What the name of a file may mean as QEMU writes it: in headers, and in answers over QMP.

Pure text: nothing here looks at a file. A plain name is a path. What stands before a colon that no
slash precedes is a protocol (QEMU, ``path_has_protocol``): ``file:`` and ``json:`` lead to files
of this host, of the others nobody here knows. Bytes that are not UTF-8 are lone surrogates, as
everywhere in Python.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheagent.model import DiskFormat
from cacheagent.model.ids import DIGEST_LENGTHS

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROTOCOL = re.compile(r"[^:/]*:")
_FILE = "file:"
_JSON = "json:"
# What QEMU takes for a string: in quotes of either kind, where a backslash may precede any of them
# (``qobject/json-lexer.c``). One that a colon follows is a key.
_STRING = re.compile(
    r"""(?:"((?:[^"\\]|\\.?)*)(?:"|\Z)|'((?:[^'\\]|\\.?)*)(?:'|\Z))(\s*:)?""", re.DOTALL
)
_QUOTE = re.compile(r"""\\.|["]""", re.DOTALL)
_AS_IN_JSON = {"\\'": "'", '"': '\\"'}
_FORMATS = tuple(str(disk_format) for disk_format in DiskFormat)
_BASE = re.compile(
    rf"((?:{'|'.join(f'{name}-[0-9a-f]{{{n}}}' for name, n in DIGEST_LENGTHS.items())}))"
    rf"(\.(?:{'|'.join(_FORMATS)}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNames:
    """What one name of a file may mean.

    ``paths`` are absolute, or relative to the folder of the file that bears the name. ``loose``
    is text whose file cannot be told: a path relative to the working folder of whoever opens it,
    any other value within ``json:``, or a name of another protocol. Neither holds what can be no
    name of a file. ``options`` tells of a ``json:`` name.
    """

    paths: tuple[str, ...]
    loose: tuple[str, ...]
    options: bool


def file_names(name: str) -> FileNames:
    """Take the name of a file apart.

    A ``json:`` name has options at any depth, and QEMU spells the name of the file in several
    ways (``file.filename``, ``filename`` within ``file``): every text in it counts. In one that
    cannot be read as a whole, all that may be a string to QEMU is such a text: no name that QEMU
    can read has a file which is not among these.
    """
    paths: list[str] = []
    loose: list[str] = []
    for text, bare in _texts(name):
        if not _can_be_a_name(text):
            continue
        if text.startswith("/") or (bare and not _PROTOCOL.match(text)):
            paths.append(text)
        elif text.startswith(_FILE + "/"):
            paths.append(text.removeprefix(_FILE))
        else:
            loose.append(text.removeprefix(_FILE))
    return FileNames(
        paths=tuple(dict.fromkeys(paths)),
        loose=tuple(dict.fromkeys(loose)),
        options=name.startswith(_JSON),
    )


def mentioned_bases(text: str) -> frozenset[str]:
    """Find every name of a base's file in a text.

    One that ends before its suffix stands for each of the files that it may have been.
    """
    return frozenset(
        stem + suffix
        for stem, found in _BASE.findall(text)
        for suffix in ((found,) if found else (f".{each}" for each in _FORMATS))
    )


def _texts(name: str) -> Iterator[tuple[str, bool]]:
    """Give each text that stands for a file, and whether it stands alone, outside of ``json:``."""
    if not name.startswith(_JSON):
        yield name, True
        return
    todo = _values(name)
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
        elif isinstance(value, str) and value.startswith(_JSON):
            todo.extend(_values(value))
        elif isinstance(value, str):
            yield value, False


def _values(name: str) -> list[object]:
    text = name.removeprefix(_JSON)
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return [_unquoted(found) for found in _STRING.finditer(text) if not found[3]]


def _unquoted(found: re.Match[str]) -> str:
    text = found[1] or found[2] or ""
    as_in_json = _QUOTE.sub(lambda quote: _AS_IN_JSON.get(quote[0], quote[0]), text)
    try:
        return str(json.loads(f'"{as_in_json}"', strict=False))
    except ValueError:
        return text  # QEMU does not read it either


def _can_be_a_name(text: str) -> bool:
    if not text or "\0" in text:
        return False
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False  # half of a surrogate pair: in no name of a file
    return True
