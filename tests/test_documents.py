"""The documents say what is there, as far as that can be held cheaply."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cacheagent.api.routes import ROUTES
from tests.test_layers import LAYERS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cacheagent"
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "tests/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)


def _section(title: str) -> str:
    """Give what stands under a heading of ARCHITECTURE.md."""
    _, _, rest = ARCHITECTURE.partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]


def _prose(text: str) -> str:
    """Leave out blocks of code: what they show is no Markdown."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchor(heading: str) -> str:
    """Give the anchor of a heading as GitHub makes it."""
    words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return words.strip().replace(" ", "-")


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(document.read_text()), flags=re.MULTILINE)
    return {_anchor(heading) for heading in headings}


def _broken(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    return not target.exists() or (bool(anchor) and anchor not in _anchors(target))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file of the project, and a heading in it."""
    links = re.findall(r"\]\(([^)\s]+)\)", _prose(document.read_text()))
    links += re.findall(r"^\[[^\]]+\]: (\S+)$", document.read_text(), flags=re.MULTILINE)
    relative = [link for link in links if "://" not in link]
    assert [link for link in relative if _broken(document, link)] == []


def test_every_module_is_in_the_code_map() -> None:
    """Whoever looks for the room of a change finds each module, and none that is not there."""
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", _section("Code map")))
    modules = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    folders = {f"{path.parent.relative_to(PACKAGE)}/" for path in PACKAGE.glob("*/**/__init__.py")}
    assert named - {"cacheagent/", "tests/"} == modules | folders


def test_the_layers_are_those_that_hold() -> None:
    """The table of the layers is the one that the imports are checked by."""
    rows = re.findall(r"^\| \d+ \| (.+) \|$", _section("Layers"), flags=re.MULTILINE)
    assert [set(re.findall(r"`(\w+)/?`", row)) for row in rows] == list(LAYERS)


def test_every_dependency_earns_its_place() -> None:
    """Each package that is installed with the agent or for its tests says what it is for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *groups["test"], *groups["check"]]
    names = {re.split(r"[<>=;\[ ]", requirement)[0] for requirement in wanted}
    table = re.findall(r"^\| ([^|]+) \|", _section("Dependencies"), flags=re.MULTILINE)
    explained = {re.sub(r"\[.*\]", "", name) for row in table for name in row.split(", ")}
    assert names - explained == set()


def test_every_route_is_described() -> None:
    """The page of the API has a row and an example for each route, and for no other."""
    text = (ROOT / "docs" / "api.md").read_text()
    route = r"`((?:GET|PUT|POST|DELETE) /[^`]*)`"
    rows = set(re.findall(rf"^\| {route} \|", text, flags=re.MULTILINE))
    headings = set(re.findall(rf"^### {route}$", text, flags=re.MULTILINE))
    routes = {f"{each.method} {each.path}" for each in ROUTES}
    assert rows == headings == routes


def test_what_the_status_page_asks_for_is_told() -> None:
    """Whoever guards the API knows each path that a browser will ask."""
    text = (ROOT / "docs" / "api.md").read_text()
    _, _, rest = text.partition("\n### `GET /`\n")
    told = re.findall(r"`/(v1/\w+)`", rest.partition("\n## ")[0])
    page = (PACKAGE / "api" / "page.html").read_text()
    assert told == re.findall(r'"(v1/\w+)"', page) != []


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "docs/threat-model.md"])
def test_the_tests_that_are_named_exist(name: str) -> None:
    """What is said to show an invariant, or a protection, is there to be run."""
    text = (ROOT / name).read_text()
    named = set(re.findall(r"`(tests/[\w/]+(?:\.py|/))`", text))
    assert {path for path in named if not (ROOT / path).exists()} == set()
    functions = set(re.findall(r"`(test_\w+)`", text))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert functions - set(re.findall(r"def (test_\w+)", sources)) == set()


def test_each_protection_stands_in_the_code() -> None:
    """The threat model names the module of each protection, and it is there."""
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs/threat-model.md").read_text()))
    ours = {
        name for name in named if not name.startswith(("tests/", "systemd/", "ingest/", "bases/"))
    }
    assert {name for name in ours if not (PACKAGE / name).exists()} == set()
