"""The status page: one file without anything from elsewhere.

Its policy allows the one script and the one style sheet that stand in it, by their digests, and
requests to the daemon itself. Every value is inserted as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The page and the headers that it is served with."""

    html: bytes
    headers: Mapping[str, str]


def load() -> Page:
    """Read the page from the package; it opens a file: call it off the event loop."""
    html = resources.files("cacheagent.api").joinpath("page.html").read_bytes()
    return Page(
        html=html,
        headers={
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": _policy(html),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


def _policy(html: bytes) -> str:
    """Give the policy for exactly what stands in ``html`` (CSP level 3, section 2.3.1)."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digests(_SCRIPT, html)}",
            f"style-src {_digests(_STYLE, html)}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _digests(element: re.Pattern[bytes], html: bytes) -> str:
    digests = (hashlib.sha256(text).digest() for text in element.findall(html))
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)
