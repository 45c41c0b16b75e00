"""A real HTTP server on loopback that serves a folder, or stands before another server, and misbehaves on demand."""

import http.client
import http.server
import logging
import re
import threading
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class Server(http.server.ThreadingHTTPServer):
    """Serves `source`: a folder, or the URL of a server that requests are passed on to."""

    daemon_threads = True

    def __init__(self, source: Path | str, ranges: bool, handler: "type[Handler]") -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.source, self.ranges = source, ranges
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults: deque[str] = deque()
        """What becomes of the next downloads of tars: "500", "cut", "stall", "trickle" or "well"."""
        self.always: str | None = None
        self.trickle = (1, 1.0)
        """How many bytes trickle, and after how many seconds the next ones."""
        self.watch: Callable[[], object] = lambda: None
        self.downloads: Counter[str] = Counter()
        self.released = threading.Event()
        self.dead = False
        self.silent = False
        """Requests of any kind get no answer."""
        self.unwell = 0
        """How many of the next requests of any kind get a 500."""

    def die(self) -> None:
        self.dead = True
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


Answer = tuple[int, dict[str, str], bytes]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        if self.server.dead:  # a connection kept alive
            self.close_connection = True
            return
        if self.server.silent:
            self.server.released.wait(30)
            self.close_connection = True
            return
        fault = "well"
        if self.server.unwell:
            self.server.unwell -= 1
            fault = "500"
        elif self.is_download():
            self.server.watch()
            self.server.downloads[unquote(self.path.split("?")[0]).rsplit("/", 1)[1]] += 1
            fault = self.server.always or (self.server.faults.popleft() if self.server.faults else "well")
        status, headers, body = self.passed_on() if isinstance(self.server.source, str) else self.from_folder()
        if fault == "500":
            status, body = 500, b"out of order"
            headers = {"Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "trickle":
            count, pause_s = self.server.trickle
            for at in range(0, len(body), count):
                self.wfile.write(body[at : at + count])
                if self.server.released.wait(pause_s):
                    break
            self.close_connection = True
            return
        if fault in ("cut", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.server.released.wait(30)
            self.close_connection = True
            return
        self.wfile.write(body)

    def is_download(self) -> bool:
        path, _, query = self.path.partition("?")
        described = path.startswith("/storage/v1/") and "alt=media" not in query  # how Google's is asked of a file
        return self.command == "GET" and path.endswith(".tar") and not described

    def from_folder(self) -> Answer:
        return self.file(Path(self.server.source) / unquote(urlsplit(self.path).path).lstrip("/"))

    def file(self, path: Path) -> Answer:
        if not path.is_file():  # a folder too: there is no listing
            return 404, {"Content-Length": "0"}, b""
        body = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not self.server.ranges:
            return 200, {"Content-Length": str(len(body))}, body
        start, total = int(asked[1]), len(body)
        body = body[start : int(asked[2]) + 1 if asked[2] else None]
        end = start + len(body) - 1
        return 206, {"Content-Length": str(len(body)), "Content-Range": f"bytes {start}-{end}/{total}"}, body

    def passed_on(self) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(str(self.server.source)).netloc, timeout=30)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        skipped = {"connection", "transfer-encoding", "content-length", "server", "date"}
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in skipped}
        headers["Content-Length"] = answer.getheader("Content-Length") or str(len(body))
        connection.close()
        return answer.status, headers, body


@contextmanager
def serving(source: Path | str, ranges: bool = True, handler: type[Handler] = Handler) -> Iterator[Server]:
    server = Server(source, ranges, handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.die()


SECRET = "something-secret"


@contextmanager
def bucket_of(folder: Path) -> Iterator[tuple[Server, str]]:
    """A folder on a real S3 server of this machine, the proxy before it, and its URL. The environment leads there."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    # All of its servers in a process share their buckets, those of another test's too.
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"", timeout=30).close()
    with pytest.MonkeyPatch.context() as patch, serving(f"http://{host}:{port}") as proxy:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": proxy.url,
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # with the address of another test's server
        direct = s3fs.S3FileSystem(endpoint_url=f"http://{host}:{port}", skip_instance_cache=True)
        direct.mkdir("photos")
        direct.put(str(folder), "photos/shards", recursive=True)
        yield proxy, "s3://photos/shards"
    moto.stop()
