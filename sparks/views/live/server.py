"""`sparks report RUN --serve`: the report in a browser, loaded again when a snapshot lands.

1. `/` is the report, rendered when it is asked for and a file of a run has changed; its tag is the
   version it was rendered from. Its script (`page/steer/follow.js`) asks `/version` every two
   seconds and loads the page again, in the same place, when the answer is another.
2. `/version` is the tag of the page that would be sent now, to which step it goes, and what keeps
   it from being up to date. A page that cannot be rendered is never loaded: the last one stays.
3. The report's own policy forbids all network but this server; no other page may frame it.

Only these routes, only GET and HEAD. A request must name the server by an address, `localhost` or
the name it was started with, so that a foreign site whose name is made to point here gets nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import TextIO

from sparks.ground.errors import SparksError, reason
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Rule, Timeline
from sparks.views.live.follower import RunFollower, marks
from sparks.views.report import followers, render_report

POLL_SECONDS = 2
"""How often an open page asks for the version."""
_POLICY = "frame-ancestors 'none'"


def serve(
    runs: Sequence[str | os.PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    title: str | None = None,
    group: str | None = None,
    rule: Rule = "growth",
    out: TextIO | None = None,
) -> None:
    """Serve the report of `runs` until Ctrl-C.

    Args:
        runs: run folders, or trainers' output folders.
        host: address to listen on. The default is this machine alone; whoever reaches another one
            reads the report, as there is no password.
        port: 0 for any that is free.
        title: of the page.
        group: count only the probes of this group.
        rule: by which the page judges heads when it is opened.
        out: where the address is told; None for standard output.

    Raises:
        SparksError: a run has no snapshot, the report cannot be rendered, or the address is taken
            or not of this machine.
    """
    server = ReportServer(LiveReport(runs, title=title, group=group, rule=rule), host, port)
    print(f"{server.url} shows the report; Ctrl-C ends", file=out or sys.stdout, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:  # how one leaves; no failure
        pass
    finally:
        server.server_close()


class LiveReport:
    """The report as the folders stand, rendered once a change.

    Raises:
        SparksError: a run has no snapshot, or the report cannot be rendered.
    """

    def __init__(
        self,
        runs: Sequence[str | os.PathLike[str]],
        *,
        title: str | None = None,
        group: str | None = None,
        rule: Rule = "growth",
    ) -> None:
        self._folders = [RunStore.find(run).path for run in runs]
        self._runs = [
            RunFollower(path, group=group, rule=rule, followers=followers(group))
            for path in self._folders
        ]
        self._title = title
        self._lock = threading.Lock()
        self._page, self._tag, self._text, self._problem = b"", "", "", ""
        self.renders = 0
        """Pages rendered."""
        self._tried = self.version()
        self._render()

    def version(self) -> str:
        """Another text whenever a file of a run is another.

        Raises:
            SparksError: a folder cannot be listed.
        """
        found = [sorted(marks(folder).items()) for folder in self._folders]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:32]

    def state(self) -> dict[str, str]:
        """What an open page asks for: `version` of the page that `page` gives, `text` on it, and
        `problem`: why it is older than the folders, or what it leaves out."""
        with self._lock:
            self._follow()
            return {"version": self._tag, "text": self._text, "problem": self._problem}

    def page(self) -> tuple[bytes, str]:
        """The page and its tag. Where it cannot be rendered, the last one that could."""
        with self._lock:
            self._follow()
            return self._page, self._tag

    def _follow(self) -> None:
        before, self._tried = self._tried, ""  # a folder that cannot be listed is a change
        try:
            self._tried = self.version()  # before reading: what lands meanwhile is a change again
            if self._tried != before:
                self._render()
        except Exception as error:  # whatever a file holds: the page that stands is shown
            why = error if isinstance(error, SparksError) else reason(error)
            self._problem = f"not up to date: {why}"

    def _render(self) -> None:
        timelines, unread = [], list[str]()
        for run in self._runs:
            run.poll()
            timelines.append(self._timeline(run))
            unread += run.left_out
        follow = {"version": self._tried, "seconds": POLL_SECONDS}
        self._page = render_report(timelines, title=self._title, follow=follow).encode("ascii")
        steps = ", ".join(str(timeline.steps[-1]) for timeline in timelines)
        self._text = f"up to step {steps}" if len(timelines) == 1 else f"up to steps {steps}"
        self._tag, self._problem = self._tried, "; ".join(unread)
        self.renders += 1

    def _timeline(self, run: RunFollower) -> Timeline:
        timeline = run.timeline()
        if timeline is None:
            RunStore.find(run.path)  # says that there is none
            raise SparksError(f"no snapshot can be read: {' '.join(run.left_out[:1])}")
        return timeline


# -- HTTP ------------------------------------------------------------------------------------


class ReportServer(ThreadingHTTPServer):
    """Listens on one address and serves one `LiveReport`; `serve_forever` runs it.

    Raises:
        SparksError: the address is taken, none, or not of this machine.
    """

    daemon_threads = True
    allow_reuse_port = False  # a taken port is to be told, not shared

    def __init__(self, report: LiveReport, host: str, port: int) -> None:
        if not 0 <= port <= 65535:
            raise SparksError(f"port must be 0 to 65535, got {port}: give another --port")
        if not host:
            raise SparksError("host must be an address or a name of this machine, got none")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.report = report
        self.names = {"localhost", host.lower()}
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise SparksError(
                f"cannot serve on {host} port {port} ({error.strerror or error}): give another "
                "--port, or --port 0 for any that is free"
            ) from error

    def server_bind(self) -> None:
        """Without the name look-up of `HTTPServer`, which can take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that left is no news; anything else is one line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"sparks: warning: a request failed ({reason!a})", file=sys.stderr)

    @property
    def url(self) -> str:
        """Where it is read."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sparks", ""
    timeout = 60  # seconds that a reader may take to ask, or to take the answer

    def handle_one_request(self) -> None:
        """One who drips a request has no more time for all of it than for a byte."""
        self._late = threading.Timer(self.timeout, self._hang_up)
        self._late.daemon = True
        self._late.start()
        try:
            super().handle_one_request()
        finally:
            self._late.cancel()

    def parse_request(self) -> bool:
        """It has been asked; what follows is the answer."""
        asked = super().parse_request()
        self._late.cancel()
        return asked

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # the reader was first
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        if not self._named_rightly():
            self._plain(421, "open this server by its address, or by the name given with --host")
            return
        route = self.path.partition("?")[0]
        if route == "/":
            page, tag = self.server.report.page()
            known = [text.strip() for text in self.headers.get("If-None-Match", "").split(",")]
            if f'"{tag}"' in known:
                self._send(304, tag=tag)
            else:
                self._send(200, page, "text/html; charset=utf-8", policy=_POLICY, tag=tag)
        elif route == "/version":
            self._send(200, json.dumps(self.server.report.state()).encode(), "application/json")
        else:
            self._plain(404, "there is / and nothing else")

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        self.close_connection = True  # what follows may be a body that nobody reads
        self._plain(405, "only GET and HEAD", allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _named_rightly(self) -> bool:
        host = self.headers.get("Host", "").strip().lower()
        name = host.rpartition("]")[0].lstrip("[") or host.partition(":")[0]
        try:
            ip_address(name)
        except ValueError:
            return name in self.server.names
        return True

    def _plain(self, code: int, text: str, *, allow: str = "") -> None:
        self._send(code, f"{text}\n".encode(), allow=allow)

    def _send(
        self,
        code: int,
        body: bytes = b"",
        kind: str = "text/plain; charset=utf-8",
        *,
        policy: str = "default-src 'none'",
        tag: str = "",
        allow: str = "",
    ) -> None:
        headers = {
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "ETag": f'"{tag}"' if tag else "",
            "Allow": allow,
            "Connection": "close" if self.close_connection else "",
        }
        if code != 304:
            headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
        self.send_response(code)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: requests are no news, and their text is a stranger's."""
