"""What the name of a file may mean, by its text alone."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.backends.qcow2 import file_names, mentioned_bases
from tests.fakes.values import base_id


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("/bases/a.raw", ["/bases/a.raw"]),
        ("a.raw", ["a.raw"]),
        ("../b/a.raw", ["../b/a.raw"]),
        ("./a:b", ["./a:b"]),
        ("/x/json:a", ["/x/json:a"]),
        ("file:/bases/a.raw", ["/bases/a.raw"]),
        (os.fsdecode(b"/bases/\xff"), [os.fsdecode(b"/bases/\xff")]),
        ("", []),
        ("/a\0b", []),
    ],
)
def test_plain_names_are_paths(name: str, paths: list[str]) -> None:
    """A name without a protocol, or with ``file:``, is the path that QEMU would open."""
    assert list(file_names(name).paths) == paths


@pytest.mark.parametrize("name", ["nbd://host/disk", "rbd:pool/image", "https://host/disk.raw"])
def test_other_protocols_mean_no_file_here(name: str) -> None:
    """A disk on the network is no path; its name is kept for those who look for words in it."""
    found = file_names(name)
    assert found.paths == ()
    assert found.loose == (name,)


def test_where_qemu_works_is_not_known() -> None:
    """A relative path behind a protocol depends on who opens it, and is told apart."""
    assert file_names("file:a.raw").loose == ("a.raw",)
    assert file_names('json:{"file.filename": "a.raw"}').loose == ("a.raw",)


@pytest.mark.parametrize(
    "options",
    [
        {"driver": "raw", "file": {"driver": "file", "filename": "/bases/a.raw"}},
        {"file.driver": "file", "file.filename": "/bases/a.raw"},
        {"driver": "qcow2", "file": {"filename": "file:/bases/a.raw"}, "size": 5, "x": None},
        {"driver": "quorum", "children": [{"file.filename": "/bases/a.raw"}]},
        {"file": {"filename": "json:" + json.dumps({"filename": "/bases/a.raw"})}},
    ],
)
def test_json_names_have_their_file_anywhere(options: dict[str, object]) -> None:
    """However QEMU spells the options of a node, the file in them is found."""
    for text in (json.dumps(options), json.dumps(options).replace("bases", "b\\u0061ses")):
        assert file_names("json:" + text).paths == ("/bases/a.raw",)


def test_what_is_no_name_of_a_file_is_left_out() -> None:
    """No file has a NUL in its name, nor half of a surrogate pair."""
    assert file_names('json:["/a\\u0000b", "/a\\ud800", ""]').paths == ()


@pytest.mark.parametrize(
    "text",
    [
        "{'filename': '/bases/a.raw'}",
        """{'file': {'filename': "/bases/a.raw"}}""",
        r"{'filename': '\u002fbases/a.raw'}",
        r"""{"filename": "/bases/a.raw", 'x': 'it\'s "that"'}""",
        "{'filename': 'json:{\\'filename\\': \\'/bases/a.raw\\'}'}",
        '{"filename": "/bases/a.raw"',
        '{"filename": "/bases/a.raw',
        "[" * 5000 + '"/bases/a.raw"' + "]" * 5000,
    ],
)
def test_the_json_of_qemu_is_more_than_json(text: str) -> None:
    """QEMU takes quotes of either kind; what it might take for a string is never left out."""
    assert "/bases/a.raw" in file_names("json:" + text).paths


@pytest.mark.parametrize("text", ["", "{", "/bases/a.raw", "[" * 5000, r'["\q/bases"]', '"/a": 1'])
def test_json_that_qemu_cannot_read_means_no_file(text: str) -> None:
    """A name that nobody can open by leads nowhere."""
    assert file_names("json:" + text).paths == ()


def test_a_name_without_an_end_takes_no_time() -> None:
    """Quotes that are never closed are walked through once."""
    assert file_names("json:{'" + "\\'\"" * 200_000 + "\\").paths == ()


@given(st.text(alphabet=st.characters(), max_size=80), st.sampled_from(["", "json:", "file:"]))
def test_any_text_is_taken_apart(text: str, protocol: str) -> None:
    """Whatever stands in a header becomes names that the system takes."""
    found = file_names(protocol + text)
    for name in (*found.paths, *found.loose):
        assert b"\0" not in os.fsencode(name)


_OPTIONS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_OPTIONS, st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_no_file_escapes_in_json(options: object, raw: bytes) -> None:
    """A path is found in whatever options surround it, at any depth."""
    path = "/" + os.fsdecode(raw)
    for value in ([options, {"f": path}], {"deep": [[{"deeper": path}]], "o": options}):
        assert path in file_names("json:" + json.dumps(value)).paths


def test_bases_are_found_in_any_text() -> None:
    """Names of bases are seen wherever they stand; without a suffix one stands for each format."""
    one, two, three = base_id(1), base_id(2), f"sha256-{5:064x}"
    text = f"xx{one}.raw\0/bases/{two}.qcow2{three}.ra sha512-12.raw"
    expected = {f"{one}.raw", f"{two}.qcow2", f"{three}.raw", f"{three}.qcow2"}
    assert mentioned_bases(text) == expected
    assert mentioned_bases("sha1-" + "a" * 40) == frozenset()
