"""The served report: fresh once a change, shut to strangers, and followed by a real browser."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from factories import STORY, make_run, make_snapshot, write_run, write_unshowable
from started import started

from sparks.ground.errors import SparksError
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline
from sparks.views.live.server import LiveReport, ReportServer, _Handler
from sparks.views.report import render_report

Start = Callable[..., ReportServer]


def make_server(
    runs: Sequence[Path], *, host: str = "127.0.0.1", port: int = 0, **keywords: Any
) -> ReportServer:
    return ReportServer(LiveReport(runs, **keywords), host, port)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", make_run(STORY))


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers in threads of their own, on any free port."""
    running: list[tuple[ReportServer, threading.Thread]] = []

    def start_(*runs: Path, **keywords: Any) -> ReportServer:
        server = make_server(runs, **keywords)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield start_
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(
    server: ReportServer,
    path: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; the path goes out as it is."""
    line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        line.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            if value:
                line.putheader(name.replace("_", "-"), value)
        line.endheaders(body)
        answer = line.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        line.close()


def state(server: ReportServer) -> dict[str, str]:
    return json.loads(ask(server, "/version")[2])


# -- the page --------------------------------------------------------------------------------------


def served(run: Path, server: ReportServer, seconds: float = 2) -> str:
    """What the server should send."""
    follow = {"version": state(server)["version"], "seconds": seconds}
    return render_report([Timeline.from_run(run)], follow=follow)


def test_the_page_is_the_report_that_may_ask_its_server_and_no_other(run, start):
    server = start(run)
    with urllib.request.urlopen(server.url, timeout=60) as answer:
        page = answer.read().decode("ascii")
        header = answer.headers["Content-Security-Policy"]
    assert page == served(run, server)
    assert header == "frame-ancestors 'none'"
    policies = [re.search(r"Security-Policy\" content=\"([^\"]*)\"", text)[1]
                for text in (page, render_report([Timeline.from_run(run)]))]  # fmt: skip
    with_server, without = ({part.split()[0]: part for part in policy.split("; ")}
                            for policy in policies)  # fmt: skip
    assert with_server.pop("connect-src") == "connect-src 'self'"
    del with_server["script-src"], without["script-src"]  # of other hashes
    assert with_server == without
    assert "unsafe" not in policies[0]


def test_a_page_is_rendered_once_a_change(run, start):
    server = start(run)
    report = server.report
    tag = ask(server, "/")[1]["ETag"]
    for _ in range(3):
        assert ask(server, "/")[1]["ETag"] == tag
        assert f'"{state(server)["version"]}"' == tag
    assert report.renders == 1
    RunStore(run).save(make_snapshot(50, ["L2H2"]))
    assert report.renders == 1  # nobody has asked
    threads = [threading.Thread(target=ask, args=(server, "/")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report.renders == 2
    assert f'"{state(server)["version"]}"' != tag
    assert state(server)["text"] == "up to step 50"
    assert ask(server, "/")[2].decode() == served(run, server)
    RunStore(run).save(make_snapshot(60, ["L2H2"]))
    assert state(server)["text"] == "up to step 60"  # what is told is ready
    assert ask(server, "/")[0] == 200
    assert report.renders == 3


def test_what_the_page_does_not_show_is_no_change(run):
    report = LiveReport([run])
    version = report.version()
    (run / "report.html").write_text("x")
    (run / ".step-00000050.safetensors.1.tmp").write_text("half")
    assert report.version() == version
    RunStore(run).write_metrics([{"step": 1, "loss": 2.0}])
    assert report.version() != version


def test_a_page_that_is_known_is_not_sent_again(run, start):
    server = start(run)
    tag = ask(server, "/")[1]["ETag"]
    for known in (tag, f'"other", W/"x", {tag}'):
        status, headers, body = ask(server, "/", If_None_Match=known)
        assert (status, headers["ETag"], body) == (304, tag, b"")
    assert ask(server, "/", If_None_Match='"other"')[0] == 200
    RunStore(run).save(make_snapshot(50))
    assert ask(server, "/", If_None_Match=tag)[0] == 200


def test_several_runs_are_one_page(run, tmp_path, start):
    other = write_run(tmp_path / "out" / "sparks", make_run({0: ["L0H0"], 5: []}))
    server = start(run, other.parent, title="Both of them")
    assert b"<title>Both of them</title>" in ask(server, "/")[2]
    before = state(server)
    assert before["text"] == "up to steps 40, 5"
    RunStore(other).save(make_snapshot(10))
    assert state(server)["version"] != before["version"]


# -- what goes wrong -------------------------------------------------------------------------------


def test_the_last_page_stays_where_the_folder_is_of_no_use(run, start):
    server = start(run)
    _, headers, page = ask(server, "/")
    assert state(server)["problem"] == ""
    RunStore(run).save(make_snapshot(50, probes=3))
    assert ask(server, "/")[1:] == (ask(server, "/")[1], page)
    assert "must have the same probes" in state(server)["problem"]
    assert ask(server, "/")[1]["ETag"] == headers["ETag"]
    RunStore(run).file(50).unlink()
    ask(server, "/")
    assert state(server)["problem"] == ""
    shutil.rmtree(run)
    assert ask(server, "/")[2] == page
    assert "no snapshots in" in state(server)["problem"]
    write_run(run, make_run({0: []}))
    assert ask(server, "/")[2] != page
    assert state(server)["problem"] == ""


def test_a_snapshot_that_cannot_be_read_is_named_and_the_others_are_shown(run, start):
    server = start(run)
    RunStore(run).file(50).write_bytes(b"\x00" * 99)
    ask(server, "/")
    assert "step-00000050.safetensors: damaged" in state(server)["problem"]
    assert state(server)["text"] == "up to step 40"
    RunStore(run).save(make_snapshot(60))
    assert ask(server, "/")[1]["ETag"] == f'"{state(server)["version"]}"'
    assert "step-00000050.safetensors: damaged" in state(server)["problem"]
    assert state(server)["text"] == "up to step 60"
    RunStore(run).save(make_snapshot(50))
    ask(server, "/")
    assert state(server)["problem"] == ""


def test_a_snapshot_that_cannot_be_shown_is_told(run, start):
    server = start(run)
    path = write_unshowable(RunStore(run), 50)
    status, _, page = ask(server, "/")
    assert status == 200
    assert page.endswith(b"</html>\n")
    assert state(server)["problem"] != ""
    path.unlink()
    RunStore(run).save(make_snapshot(60))
    ask(server, "/")
    assert (state(server)["problem"], state(server)["text"]) == ("", "up to step 60")


def test_a_landing_is_one_reading(run, start, monkeypatch):
    read, load = [], RunStore.load
    monkeypatch.setattr(RunStore, "load", lambda self, step: read.append(step) or load(self, step))
    server = start(run)
    assert read == list(STORY)
    read.clear()
    RunStore(run).save(make_snapshot(50, ["L2H2"]))
    ask(server, "/")
    assert read == [50]


def test_a_folder_that_cannot_be_listed_is_told(run, start, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    server = start(run)
    page = ask(server, "/")[2]
    with monkeypatch.context() as shut:
        shut.setattr("sparks.views.live.follower.os.scandir", refuse)
        assert "Permission denied" in state(server)["problem"]
        assert ask(server, "/")[2] == page
    assert state(server)["problem"] == ""


def test_mistakes_are_refused_before_anything_listens(run, tmp_path):
    with pytest.raises(SparksError, match=r"no snapshots in .*nowhere"):
        make_server([tmp_path / "nowhere"])
    with pytest.raises(SparksError, match="group must be one of"):
        make_server([run], group="none")
    with pytest.raises(
        SparksError, match="port must be 0 to 65535, got 70000: give another --port"
    ):
        make_server([run], port=70_000)
    with pytest.raises(SparksError, match="host must be an address"):
        make_server([run], host="")
    with pytest.raises(SparksError, match=r"cannot serve on 192\.0\.2\.1 port 0 \(.*\)"):
        make_server([run], host="192.0.2.1")


def test_a_port_in_use_is_told(run, start):
    port = start(run).server_port
    with pytest.raises(SparksError, match=rf"port {port} \(Address already in use\): .* --port 0"):
        make_server([run], port=port)


def drip(server: ReportServer, text: bytes, most: int) -> int:
    """Send byte after byte; returns how many until the server has hung up, at most `most`."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=0.02) as line:
        for count in range(most):
            try:
                line.send(text[count % len(text)].to_bytes())
                if line.recv(1) == b"":
                    return count
            except TimeoutError:
                continue
            except ConnectionError:
                return count
    return most


@pytest.mark.parametrize(
    "text", [b"GET /", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 999]
)
def test_a_reader_who_drips_its_request_is_dropped(run, start, monkeypatch, text):
    monkeypatch.setattr(_Handler, "timeout", 0.3)
    server = start(run)
    assert drip(server, text, 500) < 100
    assert ask(server, "/")[0] == 200


# -- strangers -------------------------------------------------------------------------------------


def test_it_listens_on_this_machine_alone(run, start):
    server = start(run)
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost:9000", 200),  # as a tunnel names it
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("192.168.0.7", 200),
        ("evil.example", 421),
        ("evil.example:8765", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("[evil.example]", 421),
        ("", 421),
    ],
)
def test_a_request_must_name_the_server(run, start, host, status):
    server = start(run)
    for path in ("/", "/version"):
        found, _, body = ask(server, path, Host=host)
        assert found == status
        assert (b"L0H0" in body or b"sparks" in body or b"version" in body) == (status == 200)


def test_the_name_given_is_a_name_of_the_server(run, start):
    server = start(run, host="localhost")
    server.names.add("gpu-box")
    assert ask(server, "/", Host="gpu-box:80")[0] == 200
    assert ask(server, "/", Host="gpu")[0] == 421


@pytest.mark.parametrize(
    "path",
    [
        "/report",
        "/report.html",
        "/../version",
        "//x/version",
        "/version/..",
        "/step-00000000.safetensors",
        "/%2e%2e/etc/passwd",
        "/../../../etc/passwd",
        "http://x/report",
        "*",
        "/favicon.ico",
    ],
)
def test_there_are_two_routes(run, start, path):
    status, headers, body = ask(start(run), path, Host="localhost")
    assert (status, body) == (404, b"there is / and nothing else\n")
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_routes_ignore_what_stands_behind_a_question_mark(run, start):
    assert ask(start(run), "/version?x=1")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_can_only_be_read(run, start, method):
    status, headers, _ = ask(start(run), "/", method=method)
    assert (status, headers["Allow"], headers["Connection"]) == (405, "GET, HEAD", "close")


def test_head_is_get_without_the_body(run, start):
    server = start(run)
    for path in ("/", "/version", "/none"):
        whole, head = ask(server, path), ask(server, path, method="HEAD")
        for headers in (whole[1], head[1]):
            del headers["Date"]
        assert head[:2] == whole[:2]
        assert (head[2], int(head[1]["Content-Length"])) == (b"", len(whole[2]))


def test_no_byte_of_a_body_follows_head(run, start):
    with socket.create_connection(("127.0.0.1", start(run).server_port)) as line:
        line.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = line.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


def test_requests_print_nothing_and_a_reader_that_leaves_harms_nobody(run, start, capfd):
    server = start(run)
    for text in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x1b[2J\r\n\r\n", b""):
        with socket.create_connection(("127.0.0.1", server.server_port)) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            line.sendall(text)
    assert ask(server, "/version")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_request_that_fails_is_one_line(run, start, capfd, monkeypatch):
    def fail(self):
        raise RuntimeError("broken\n\x1b[2J")

    server = start(run)
    monkeypatch.setattr(LiveReport, "state", fail)
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(server, "/version")
    out, err = capfd.readouterr()
    assert (out, err) == (
        "",
        "sparks: warning: a request failed ('RuntimeError: broken \\x1b[2J')\n",
    )


def test_ctrl_c_ends_it(run):
    program = "import sys; from sparks.views.live.server import serve; serve([sys.argv[1]], port=0)"
    command = [sys.executable, "-c", program, run]
    with started(command, stdout=PIPE, stderr=PIPE, text=True) as process:
        line = process.stdout.readline()
        url = re.fullmatch(r"(http://127\.0\.0\.1:\d+/) shows the report; Ctrl-C ends\n", line)[1]
        with urllib.request.urlopen(url + "version", timeout=60) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


# -- a browser -------------------------------------------------------------------------------------

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    if not (BROWSER and DRIVER):
        pytest.skip("chromium and chromedriver are not on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_argument("--window-size=1400,700")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.05)


@pytest.mark.browser
def test_an_open_page_shows_what_lands_and_keeps_its_place(run, start, browser, monkeypatch):
    from selenium.common.exceptions import WebDriverException

    def page(script: str) -> Any:
        """None while it loads."""
        try:
            return browser.execute_script(f"return {script}")
        except WebDriverException:
            return None

    def checkpoints() -> str:
        return page("document.documentElement.dataset.checkpoints")

    def status() -> str:
        return page("document.getElementById('live').textContent")

    monkeypatch.setattr("sparks.views.live.server.POLL_SECONDS", 0.1)
    server = start(run)
    browser.get(server.url + "#step=20&heads=born")
    until(lambda: checkpoints() == "5")
    until(lambda: status() == "Live: up to step 40")
    until(lambda: page("[step.value, show.value]") == ["2", "born"])

    page("(location.hash = '#step=30&heads=base', scrollTo(0, 300), document.mark = 1)")
    until(lambda: page("[step.value, show.value]") == ["3", "base"])
    RunStore(run).save(make_snapshot(50, ["L2H2"]))
    until(lambda: checkpoints() == "6")
    assert page("document.mark === undefined")  # another document, in the same place
    until(lambda: page("[step.value, show.value]") == ["3", "base"])
    until(lambda: page("scrollY") == 300)
    until(lambda: status() == "Live: up to step 50")
    assert server.report.renders == 2

    page("location.hash = '#step=50&heads=base'")  # a reader at the end goes on
    until(lambda: page("step.value") == "5")
    RunStore(run).save(make_snapshot(55, ["L2H2"]))
    until(lambda: checkpoints() == "7")
    until(lambda: page("[step.value, show.value]") == ["6", "base"])

    page("document.mark = 1")
    RunStore(run).save(make_snapshot(60, probes=3))
    until(lambda: "must have the same probes" in status())
    assert checkpoints() == "7"
    RunStore(run).file(60).unlink()
    until(lambda: status() == "Live: up to step 55")
    assert [entry["message"] for entry in browser.get_log("browser")] == []

    def fail(self):
        raise RuntimeError("stopped")

    with monkeypatch.context() as stopped:
        stopped.setattr(LiveReport, "state", fail)
        until(lambda: status() == "The server does not answer: this page stays as it was.")
    until(lambda: status() == "Live: up to step 55")
    assert checkpoints() == "7"
    assert page("document.mark") == 1  # the same document
