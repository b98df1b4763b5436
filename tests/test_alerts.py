"""Alerts reach the command and the address that params.yaml names, and never stop the work."""

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pd_pipeline import graph
from pd_pipeline.alerts import alert
from pd_pipeline.incoming.ingest import take
from tests.dvc_project import SMALL_PARAMS, change, make_project


class Receiver(HTTPServer):
    """Keeps what was posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.posted = 200, list[tuple[str, dict[str, str]]]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_project(tmp_path, SMALL_PARAMS + "automation: {settle_seconds: 0, alert: {command: null}}\n")


def _running(word: str) -> list[list[bytes]]:
    """The command lines of this machine that have a word."""
    commands = [_command(process).split(b"\0") for process in Path("/proc").glob("[0-9]*")]
    return [words for words in commands if word.encode() in words]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""  # it ended


def asked(root: Path, text: str) -> graph.Graph:
    change(root, "alert: {command: null}", f"alert: {{{text}}}")
    return graph.load(root)


def test_a_command_gets_the_alert_as_json(root: Path) -> None:
    project = asked(root, "command: 'cat > heard.json'")
    alert(project, "refusal", "point_robot-5", 'worse by 3 "points"; rm -rf $HOME')
    heard = json.loads((root / "heard.json").read_text())
    assert heard.pop("time").endswith("+00:00")
    assert heard == {
        "event": "refusal",
        "subject": "point_robot-5",
        "message": 'worse by 3 "points"; rm -rf $HOME',
        "project": str(root),
    }


def test_an_address_gets_it_by_post_and_takes_secrets_from_the_environment(
    root: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERT_TOKEN", "s3cret")
    alert(asked(root, f"url: '{receiver.address}/hook?token=$ALERT_TOKEN'"), "failure", "plm point_robot-0", "no space")
    ((path, content),) = receiver.posted
    assert path == "/hook?token=s3cret"
    assert (content["event"], content["message"]) == ("failure", "no space")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("command: 'echo out of order >&2; exit 3'", "exit 3: out of order"),
        ("command: 'sleep 5', timeout: 0.2", "ended after 0.2 s"),
        ("url: 'http://127.0.0.1:9/hook?token=s3cret'", "host 127.0.0.1: "),
        ("url: '$NO_SUCH_VARIABLE/hook'", "the environment has no variable NO_SUCH_VARIABLE"),
        ("url: '$ODD'", "neither http nor https"),
    ],
)
def test_an_alert_that_cannot_be_delivered_is_logged_without_its_secret(
    setting: str, said: str, root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD", "file:///etc/passwd")
    alert(asked(root, setting), "failure", "x", "y")
    assert said in caplog.text
    assert "s3cret" not in caplog.text


def test_after_a_timeout_nothing_is_left_running(root: Path) -> None:
    seconds = str(10_000 + os.getpid())  # of this test alone: others run beside it
    alert(asked(root, f"command: '(sleep {seconds}; true)', timeout: 0.5"), "failure", "x", "y")
    deadline = time.monotonic() + 20
    while left := _running(seconds):  # a killed process is there until the kernel has come to it
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_an_error_of_the_receiver_is_logged(root: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.status = 500
    alert(asked(root, f"url: '{receiver.address}'"), "failure", "x", "y")
    assert len(receiver.posted) == 1
    assert "HTTP Error 500" in caplog.text


def test_a_quarantined_file_alerts(root: Path, receiver: Receiver) -> None:
    project = asked(root, f"url: '{receiver.address}'")
    bad = root / "data/incoming/point_robot/57/bad.parquet"
    bad.parent.mkdir(parents=True)
    bad.write_text("nothing")
    (outcome,) = take(project)
    assert (outcome.state, outcome.family, outcome.task) == ("quarantined", "point_robot", 57)
    ((_, content),) = receiver.posted
    assert (content["event"], content["subject"]) == ("quarantine", "data/incoming/point_robot/57/bad.parquet")
    assert content["message"] == outcome.message
