"""Alerts: a failure, a quarantined file or a refused policy, handed to the command or address that params.yaml names.

An alert that cannot be delivered is logged and never stops the work. What is logged of an address is its host alone,
since the rest may hold a secret.
"""

import json
import logging
import os
import re
import signal
import subprocess
import urllib.request
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal
from urllib.parse import urlsplit

from pd_pipeline.config import PARAMS_FILE, AlertParams
from pd_pipeline.errors import one_line
from pd_pipeline.graph import Graph

Event = Literal["failure", "quarantine", "refusal"]
WHERE = f"{PARAMS_FILE}: automation"
log = logging.getLogger(__name__)


def alert(graph: Graph, event: Event, subject: str, message: str) -> None:
    """Tell the user's command and address, if params.yaml names them, what happened to `subject`.

    They get `{"event", "subject", "message", "project", "time"}` as JSON.
    """
    asked = graph.params.automation.alert
    if asked.command is None and asked.url is None:
        return
    content = {
        "event": event,
        "subject": subject,
        "message": message,
        "project": str(graph.root),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    body = json.dumps(content, ensure_ascii=False).encode() + b"\n"  # a command may append it to a file
    if asked.command is not None:
        _to_command(asked, body, graph.root)
    if asked.url is not None:
        _to_url(asked, body)


def _to_command(asked: AlertParams, body: bytes, root: Path) -> None:
    assert asked.command is not None
    # files rather than pipes: children of the shell could hold a pipe open
    with TemporaryFile() as given, TemporaryFile() as said:
        given.write(body)
        given.seek(0)
        try:
            shell = subprocess.Popen(
                asked.command,
                shell=True,
                cwd=root,
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        except OSError as error:  # such as too many processes
            log.warning("%s.alert.command: %s", WHERE, one_line(str(error), 200))
            return
        try:
            code = shell.wait(asked.timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # with all that it started
            shell.wait()
            log.warning("%s.alert.command: ended after %g s", WHERE, asked.timeout)
            return
        if code:
            said.seek(0)
            text = one_line(said.read(10_000).decode(errors="replace"), 200)
            log.warning("%s.alert.command: exit %d: %s", WHERE, code, text)


def _to_url(asked: AlertParams, body: bytes) -> None:
    assert asked.url is not None
    address = os.path.expandvars(asked.url)
    if unset := re.findall(r"\$\{?(\w+)", address):
        log.warning("%s.alert.url: the environment has no variable %s", WHERE, ", ".join(unset))
        return
    try:
        host = urlsplit(address).hostname
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
        if urlsplit(address).scheme not in ("http", "https"):
            log.warning("%s.alert.url: neither http nor https", WHERE)
            return
        urllib.request.urlopen(request, timeout=asked.timeout).close()
    except ValueError:
        log.warning("%s.alert.url: not an address", WHERE)
    except OSError as error:  # includes the HTTP errors of urllib
        log.warning("%s.alert.url: host %s: %s", WHERE, host, one_line(str(error), 200))
