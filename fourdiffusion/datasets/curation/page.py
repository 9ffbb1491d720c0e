"""The review page to keep or drop clips: a local server of the standard library."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fourdiffusion.errors import UserError

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
HIDDEN = ("stamp", "look", "motion", "folder")  # columns that the page does not show
MAX_BODY = 10_000  # largest request in bytes

Change = Callable[[str, str], list[dict[str, Any]]]  # (uid, "keep" | "drop" | "") -> all rows after it


def make_server(rows: list[dict[str, Any]], change: Change, thumbnails: Path, port: int) -> ThreadingHTTPServer:
    """Return the page's server, not yet running.

    Args:
        rows: of the manifest.
        change: stores a decision and returns the updated rows.
        thumbnails: folder of <uid>.webp.
        port: 0: any free one.
    """
    state = {"rows": rows}
    names = {row["uid"] for row in rows}
    guard = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Serve the page, its rows and its thumbnails."""
            path = unquote(urlsplit(self.path).path)
            if not self._is_local():
                return
            if path == "/":
                self._answer(PAGE.read_bytes(), "text/html; charset=utf-8")
            elif path == "/rows":
                self._json(state["rows"])
            elif path.startswith("/thumbnails/") and path[12:] in names:
                file = thumbnails / f"{path[12:]}.webp"
                if file.is_file():
                    self._answer(file.read_bytes(), "image/webp", "max-age=3600")
                else:
                    self.send_error(HTTPStatus.NOT_FOUND)
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            """Store one decision, a JSON object, and write the manifest."""
            if not self._is_local():
                return
            # Other sites need a CORS preflight to send this type, which this server does not answer.
            if self.path != "/decision" or self.headers.get("Content-Type") != "application/json":
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            try:
                body = json.loads(self.rfile.read(min(int(self.headers.get("Content-Length", 0)), MAX_BODY)))
                uid, decision = body["uid"], body["decision"]
            except (ValueError, KeyError, TypeError):
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            if uid not in names or decision not in ("keep", "drop", ""):
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            with guard:
                state["rows"] = change(uid, decision)
                self._json(state["rows"])

        def _is_local(self) -> bool:
            """Refuse requests under another host name (DNS rebinding)."""
            if urlsplit(f"//{self.headers.get('Host', '')}").hostname in (HOST, "localhost"):
                return True
            self.send_error(HTTPStatus.FORBIDDEN)
            return False

        def _json(self, content: list[dict[str, Any]]) -> None:
            shown = [{key: value for key, value in row.items() if key not in HIDDEN} for row in content]
            self._answer(json.dumps(shown).encode(), "application/json")

        def _answer(self, body: bytes, kind: str, caching: str = "no-store") -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", caching)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(f"port={port} cannot be used ({error.strerror}); give another one, or 0 for any") from error


def serve(rows: list[dict[str, Any]], change: Change, thumbnails: Path, port: int) -> None:
    """Serve the page until Ctrl-C."""
    with make_server(rows, change, thumbnails, port) as server:
        print(f"page: http://{HOST}:{server.server_address[1]} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
