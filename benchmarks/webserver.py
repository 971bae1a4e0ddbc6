"""The image service of a benchmark: static files that look like Glance, sent by nginx."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSIONS = "versions.json"
SHOW = "show.json"

_PATIENCE = 10.0
_NGINX = """
daemon off;
worker_processes auto;
user {user};
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    # Larger ones are sparse: read past the page cache they cost no memory.
    directio 4g;
    output_buffers 2 1m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    default_type application/octet-stream;
    types {{ application/json json; }}
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location = / {{ try_files /{versions} =404; }}
        location ~ ^/v2/images/[^/]+$ {{ try_files $uri/{show} =404; }}
    }}
}}
"""


def file_of(path: str) -> str:
    """Give the file, relative to the root, that answers a GET for ``path``."""
    if path == "/":
        return VERSIONS
    name = path.strip("/")
    return name if name.endswith("/file") else f"{name}/{SHOW}"


def name() -> str:
    """Say what serves."""
    return "nginx" if shutil.which("nginx", path=_path()) else "sendfile.py"


@contextlib.contextmanager
def serving(root: Path, folder: Path) -> Iterator[str]:
    """Serve the files below ``root``, with ``folder`` for what the server keeps; give its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(_words(root, folder, port))
    try:
        _wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _words(root: Path, folder: Path, port: int) -> list[str]:
    nginx = shutil.which("nginx", path=_path())
    if nginx is None:
        return [sys.executable, "-m", "benchmarks.sendfile", str(root), str(port)]
    config = folder / "nginx.conf"
    user = "root" if os.geteuid() == 0 else "nobody"
    config.write_text(
        _NGINX.format(folder=folder, root=root, port=port, user=user, versions=VERSIONS, show=SHOW)
    )
    return [nginx, "-p", str(folder), "-c", str(config), "-e", str(folder / "nginx.log")]


def _path() -> str:
    """Where an ordinary user's PATH does not lead, too."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin"


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _PATIENCE
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.01)
    raise ConnectionError("the image service does not answer")
