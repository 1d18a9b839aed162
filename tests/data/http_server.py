"""A file server on loopback that fails on demand."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FlakyServer:
    """Serves the files of `folder`; every GET takes the next entry of `faults`, if any.

    Faults: "500", "403" a status, "short" a body that ends early, "drop" a connection that closes, "ok" none; and what
    proxies do: "login" a page of the right length, "page" one that says it is HTML, "shifted" other bytes under the
    right range, "moved" the range before, "unnamed" a part without its range, "zipped" another encoding, "grown"
    another total size, "other tag" another ETag, "untagged" none. "dated" and "dated other tag": with a date.

    `always` is a fault of every request for a name, HEAD included.
    """

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.faults: deque[str] = deque()
        self.always: dict[str, str] = {}
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        """Bytes of the bodies that were sent, by name."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._serve(with_body=False)

            def do_GET(self) -> None:
                self._serve(with_body=True)

            def _serve(self, with_body: bool) -> None:
                path = folder / self.path.lstrip("/")
                fault = outer.faults.popleft() if outer.faults and with_body else "ok"
                fault = outer.always.get(path.name, fault)
                outer.requests[f"{self.command} {self.path}"] += 1
                if fault == "drop":
                    self.close_connection = True
                    return
                if fault.isdigit() or not path.is_file():
                    self.send_response(int(fault) if fault.isdigit() else 404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                data = path.read_bytes()
                tag = f'"{hashlib.sha256(data).hexdigest()}"'
                if fault == "login":
                    data = b"<html>log in</html>".ljust(len(data))
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if asked and ranges:
                    start, stop = int(asked[1]), int(asked[2]) + 1
                    back = min(start, 512) if fault in ("shifted", "moved") else 0
                    part = data[start - back : stop - back]
                    first = start - back if fault == "moved" else start
                    self.send_response(206)
                    if fault != "unnamed":
                        total = len(data) + 512 * (fault == "grown")
                        self.send_header("Content-Range", f"bytes {first}-{first + stop - start - 1}/{total}")
                else:
                    part = data
                    self.send_response(200)
                self.send_header("Content-Length", str(len(part)))
                if fault != "untagged":
                    self.send_header("ETag", '"other"' if fault.endswith("other tag") else tag)
                if fault.startswith("dated"):
                    self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
                self.send_header("Content-Type", "text/html" if fault == "page" else "application/x-tar")
                if fault == "zipped":
                    self.send_header("Content-Encoding", "x-unknown")
                self.end_headers()
                if with_body:
                    body = part[: len(part) // 2] if fault == "short" else part
                    self.wfile.write(body)
                    outer.sent[path.name] += len(body)
                    self.close_connection = self.close_connection or fault == "short"

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def gets(self, name: str) -> int:
        return self.requests[f"GET /{name}"]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
