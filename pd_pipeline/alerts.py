"""Alerts: a failure, a quarantined file or a refused policy, handed to the command or address that params.yaml names.

An alert that cannot be delivered is logged and never stops the work. What is logged of an address is its host alone,
since the rest may hold a secret.
"""

import json
import logging
import os
import re
import subprocess
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pd_pipeline.config import AlertParams
from pd_pipeline.errors import one_line
from pd_pipeline.graph import Graph

Event = Literal["failure", "quarantine", "refusal"]
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
    body = json.dumps(content, ensure_ascii=False).encode()
    if asked.command is not None:
        _to_command(asked, body, graph.root)
    if asked.url is not None:
        _to_url(asked, body)


def _to_command(asked: AlertParams, body: bytes, root: Path) -> None:
    assert asked.command is not None
    try:
        done = subprocess.run(
            asked.command, shell=True, input=body, cwd=root, capture_output=True, timeout=asked.timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("alert.command of %s: %s", _where(), one_line(str(error), 200))
        return
    if done.returncode:
        said = one_line(done.stderr.decode(errors="replace"), 200)
        log.warning("alert.command of %s: exit %d: %s", _where(), done.returncode, said)


def _to_url(asked: AlertParams, body: bytes) -> None:
    assert asked.url is not None
    address = os.path.expandvars(asked.url)
    if unset := re.findall(r"\$\{?(\w+)", address):
        log.warning("alert.url of %s: the environment has no variable %s", _where(), ", ".join(unset))
        return
    try:
        host = urlsplit(address).hostname
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
        if urlsplit(address).scheme not in ("http", "https"):
            log.warning("alert.url of %s: neither http nor https", _where())
            return
        urllib.request.urlopen(request, timeout=asked.timeout).close()
    except ValueError:
        log.warning("alert.url of %s: not an address", _where())
    except OSError as error:  # includes the HTTP errors of urllib
        log.warning("alert.url of %s, host %s: %s", _where(), host, one_line(str(error), 200))


def _where() -> str:
    return "params.yaml: automation"
