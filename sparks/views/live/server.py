"""`sparks report RUN --serve`: the report in a browser, loaded again when a snapshot lands.

1. `/` is a thin page that frames the report and asks `/version` every two seconds. When the answer
   is another, it tells the framed report to load itself again, which keeps its scroll and its hash.
   A hash behind the page's own address is handed to the report.
2. `/report` is the report, rendered when it is asked for and a file of a run has changed; the tag
   of a page is the version it was rendered from.
3. The frame is a sandbox without an origin. The report's own policy, which forbids all network,
   stands; the one script that is added to it, by its hash, loads it again when told to.

Only these routes, only GET and HEAD. A request must name the server by an address, `localhost` or
the name it was started with, so that a foreign site whose name is made to point here gets nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any, TextIO

from sparks.ground.errors import SparksError, reason
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Rule, Timeline
from sparks.views.live.follower import RunFollower, marks
from sparks.views.report import followers, render_report

POLL_SECONDS = 2
"""How often an open page asks for the version."""
_PATIENCE_SECONDS = 20  # after that a frame that has not loaded is opened anew
_RELOAD, _LOADED = "sparks: load again", "sparks: loaded"

# Loaded again, a frame without an origin starts at its top and has no storage: its name carries the
# scroll. A reader at the last checkpoint goes on to the next: the step leaves the hash.
_BRIDGE = f"""if (parent !== window) {{
  addEventListener("message", event => {{
    if (event.source !== parent || event.data !== "{_RELOAD}") return;
    const step = document.getElementById("step");
    if (step && step.value === step.max) {{
      history.replaceState(null, "", location.hash.replace(/(#|&)step=[^&]*/, "$1"));
    }}
    name = scrollX + " " + scrollY;
    location.reload();
  }});
  const place = name.split(" ").map(Number);
  const settle = () => {{
    if (document.documentElement.dataset.ready) scrollTo(place[0], place[1]);
    else requestAnimationFrame(settle);
  }};
  name = "";
  if (place.length === 2) settle();
  parent.postMessage("{_LOADED}", "*");
}}"""

_STYLE = """html, body { height: 100%; margin: 0; }
body { display: flex; flex-direction: column; color-scheme: light dark; background: Canvas; }
iframe { flex: 1; border: 0; width: 100%; }
p { margin: 0; padding: 2px 12px; font: 13px/1.5 system-ui, sans-serif; color: CanvasText;
  border-top: 1px solid GrayText; overflow-wrap: anywhere; }"""

_SCRIPT = f"""(() => {{
"use strict";
const frame = document.getElementById("report"), status = document.getElementById("status");
let shown = null, told = 0;  // when the frame was told to load; 0 once it has
const say = text => {{ if (status.textContent !== text) status.textContent = text; }};
const open = () => {{ told = Date.now(); frame.src = "/report" + location.hash; }};
addEventListener("hashchange", () => {{ frame.src = "/report" + location.hash; }});
addEventListener("message", event => {{
  if (event.source === frame.contentWindow && event.data === "{_LOADED}") told = 0;
}});
async function look() {{
  try {{
    const answer = await fetch("/version", {{cache: "no-store"}});
    if (!answer.ok) throw new Error(answer.status);
    const {{version, text, problem}} = await answer.json();
    if (shown === null || (told && Date.now() - told > {_PATIENCE_SECONDS * 1000})) open();
    else if (version !== shown) {{
      told = Date.now();
      frame.contentWindow.postMessage("{_RELOAD}", "*");
    }}
    shown = version;
    document.documentElement.dataset.version = version;
    say("Live: " + text + (problem ? "; " + problem : ""));
  }} catch (error) {{
    say("The server does not answer: this page stays as it was.");
  }}
  setTimeout(look, Number(document.body.dataset.wait));
}}
look();
}})();"""

_OUTER = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sparks report, live</title>
<style>{_STYLE}</style>
</head>
<body data-wait="{POLL_SECONDS * 1000}">
<iframe id="report" title="report" sandbox="allow-scripts allow-downloads"></iframe>
<p id="status" role="status">Waiting for the server.</p>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def serve(
    runs: Sequence[str | os.PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    title: str | None = None,
    group: str | None = None,
    rule: Rule = "calibrated",
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
    server = make_server(runs, host=host, port=port, title=title, group=group, rule=rule)
    print(f"{server.url} shows the report; Ctrl-C ends", file=out or sys.stdout, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:  # how one leaves; no failure
        pass
    finally:
        server.server_close()


def make_server(
    runs: Sequence[str | os.PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    title: str | None = None,
    group: str | None = None,
    rule: Rule = "calibrated",
) -> ReportServer:
    """A server that listens and has rendered the report once; `serve_forever` runs it.

    Raises:
        SparksError: as `serve` does.
    """
    if not 0 <= port <= 65535:
        raise SparksError(f"port must be 0 to 65535, got {port}: give another --port")
    if not host:
        raise SparksError("host must be an address or a name of this machine, got none")
    report = LiveReport(runs, title=title, group=group, rule=rule)
    try:
        return ReportServer(report, host, port)
    except OSError as error:
        raise SparksError(
            f"cannot serve on {host} port {port} ({error.strerror or error}): give another --port, "
            "or --port 0 for any that is free"
        ) from error


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
        rule: Rule = "calibrated",
    ) -> None:
        self._folders = [RunStore.find(run).path for run in runs]
        self._runs = [
            RunFollower(path, group=group, rule=rule, followers=followers(group))
            for path in self._folders
        ]
        self._title = title
        self._lock = threading.Lock()
        self._tried = self.version()
        self._page, self._tag, self._text = b"", "", ""
        self.problem = ""
        """Why the page is older than the folders, or what it leaves out; else nothing."""
        self.renders = 0
        """Pages rendered."""
        self._render()

    def version(self) -> str:
        """Another text whenever a file of a run is another.

        Raises:
            SparksError: a folder cannot be listed.
        """
        found = [sorted(marks(folder).items()) for folder in self._folders]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:32]

    def state(self) -> dict[str, str]:
        """What an open page asks for: `version`, `text` on the page it has, `problem`."""
        try:
            return {"version": self.version(), "text": self._text, "problem": self.problem}
        except SparksError as error:
            problem = f"not up to date: {error}"
            return {"version": self._tag, "text": self._text, "problem": problem}

    def page(self) -> tuple[bytes, str]:
        """The page and its tag. Where it cannot be rendered, the last one that could."""
        with self._lock:
            try:
                version = self.version()
                if version != self._tried:
                    self._tried = version  # before reading: what lands meanwhile is a change again
                    self._render()
            except SparksError as error:
                self.problem = f"not up to date: {error}"
            except Exception as error:  # whatever a file holds: the page that stands is shown
                self.problem = f"not up to date: {reason(error)}"
            return self._page, self._tag

    def _render(self) -> None:
        timelines, unread = [], list[str]()
        for run in self._runs:
            run.poll()
            timelines.append(self._timeline(run))
            unread += run.left_out
        self._page = _with_bridge(render_report(timelines, title=self._title)).encode("ascii")
        steps = ", ".join(str(timeline.steps[-1]) for timeline in timelines)
        self._text = f"up to step {steps}" if len(timelines) == 1 else f"up to steps {steps}"
        self._tag, self.problem = self._tried, "; ".join(unread)
        self.renders += 1

    def _timeline(self, run: RunFollower) -> Timeline:
        timeline = run.timeline()
        if timeline is None:
            RunStore.find(run.path)  # says that there is none
            raise SparksError(f"no snapshot can be read: {' '.join(run.left_out[:1])}")
        return timeline


def _with_bridge(page: str) -> str:
    """The report with the script that loads it again; its policy allows that script by its hash."""
    policy, end = "script-src '", "</body>\n</html>"
    head, found, rest = page.partition(policy)
    body, closing, tail = rest.rpartition(end)
    assert found, "the report names its scripts in its policy"
    assert closing, "the report is a whole page"
    script = f"<script>{_BRIDGE}</script>\n"
    return f"{head}script-src {_source_hash(_BRIDGE)} '{body}{script}{closing}{tail}"


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# -- HTTP ------------------------------------------------------------------------------------

_OUTER_POLICY = (
    f"default-src 'none'; script-src {_source_hash(_SCRIPT)}; style-src {_source_hash(_STYLE)}; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_REPORT_POLICY = "sandbox allow-scripts allow-downloads; frame-ancestors 'self'"


class ReportServer(ThreadingHTTPServer):
    """Listens on one address and serves one `LiveReport`."""

    daemon_threads = True
    allow_reuse_port = False  # a taken port is to be told, not shared

    def __init__(self, report: LiveReport, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.report = report
        self.names = {"localhost", host.lower()}
        super().__init__((host, port), partial(_Handler, report=report, names=self.names))

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


class _Asked(io.RawIOBase):
    """What a reader sends. One who drips it has no more time for all of it than for a byte."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self.until = connection, 0.0

    def readable(self) -> bool:
        """For `io.BufferedReader`."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for the next bytes, until the time is over.

        Raises:
            TimeoutError: it is.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sparks", ""
    timeout = 60  # seconds that a reader may take to ask, or to take the answer

    def __init__(self, *arguments: object, report: LiveReport, names: set[str]) -> None:
        self._report, self._names = report, names
        super().__init__(*arguments)  # type: ignore[arg-type]

    def setup(self) -> None:
        super().setup()
        self._asked = _Asked(self.connection)
        self.rfile = io.BufferedReader(self._asked)

    def handle_one_request(self) -> None:
        self._asked.until = time.monotonic() + self.timeout
        super().handle_one_request()

    def do_GET(self) -> None:
        if not self._named_rightly():
            self._plain(421, "open this server by its address, or by the name given with --host")
            return
        route = self.path.partition("?")[0]
        if route == "/":
            self._send(200, "text/html; charset=utf-8", _OUTER.encode(), policy=_OUTER_POLICY)
        elif route == "/version":
            state = json.dumps(self._report.state()).encode()
            self._send(200, "application/json", state)
        elif route == "/report":
            page, tag = self._report.page()
            known = [text.strip() for text in self.headers.get("If-None-Match", "").split(",")]
            fresh = f'"{tag}"' not in known
            self._send(
                200 if fresh else 304,
                "text/html; charset=utf-8",
                page if fresh else b"",
                policy=_REPORT_POLICY,
                tag=tag,
            )
        else:
            self._plain(404, "there is / and nothing else")

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        self.close_connection = True  # what follows may be a body that nobody reads
        self._send(405, "text/plain; charset=utf-8", b"only GET and HEAD\n", allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _named_rightly(self) -> bool:
        host = self.headers.get("Host", "").strip().lower()
        name = host.rpartition("]")[0].lstrip("[") or host.partition(":")[0]
        try:
            ip_address(name)
        except ValueError:
            return name in self._names
        return True

    def _plain(self, code: int, text: str) -> None:
        self._send(code, "text/plain; charset=utf-8", f"{text}\n".encode())

    def _send(
        self,
        code: int,
        kind: str,
        body: bytes,
        *,
        policy: str = "default-src 'none'",
        tag: str = "",
        allow: str = "",
    ) -> None:
        self.connection.settimeout(self.timeout)
        self.send_response(code)
        headers = {
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "ETag": f'"{tag}"' if tag else "",
            "Allow": allow,
        }
        if code != 304:
            headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: requests are no news, and their text is a stranger's."""
