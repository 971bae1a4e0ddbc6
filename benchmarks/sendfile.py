"""Files of a folder over HTTP, by sendfile(2): what serves images where nginx is missing.

python -m benchmarks.sendfile FOLDER PORT
"""

from __future__ import annotations

import os
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.webserver import file_of

_PIECE = 64 << 20


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        path = self.folder / file_of(self.path)
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            sent = 0
            while sent < size:
                sent += os.sendfile(self.connection.fileno(), file.fileno(), sent, _PIECE)

    def log_message(self, *_: object) -> None:
        """Keep silent."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Keep silent about who went away."""


def main() -> None:
    """Serve until killed."""
    _Handler.folder = Path(sys.argv[1])
    _Handler.disable_nagle_algorithm = True
    with _Server(("127.0.0.1", int(sys.argv[2])), _Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
