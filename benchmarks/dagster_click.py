"""All of point_robot by the button "Materialize all" of Dagster's UI, against `pd-pipeline run all`.

`dagster dev` is started with the settings of this repository's dagster.yaml, and what the button sends is sent to it.
"""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from benchmarks.common import Figure, at_most, command, timed
from benchmarks.projects import BIN, call, environment, project

REPOSITORY = Path(__file__).parent.parent
READY_SECONDS = 120.0
CLICK = "mutation ($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) { __typename ... on \
LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"
DAEMON = '{ instance { daemonHealth { daemonStatus(daemonType: "BACKFILL") { healthy } } } }'
STATUS = "query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
BACKFILLS = "{ partitionBackfillsOrError { ... on PartitionBackfills { results { id } } } }"
ASSETS = "{ assetNodes { assetKey { path } } }"
RUNS = """query ($tag: String!) { runsOrError(filter: {tags: [{key: "dagster/backfill", value: $tag}]}) { ... on Runs {
results { runId status creationTime startTime endTime assetSelection { path }
stepStats { stepKey startTime endTime status } } } } }"""


@dataclass(frozen=True)
class Click:
    """What became of one click."""

    seconds: float
    """From the click until the last piece is made."""
    status: str
    runs: list[dict[str, Any]]
    """As the UI shows them, in the order of their creation."""


class Server:
    """A running `dagster dev`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The answer to a GraphQL query. Raises RuntimeError where it is an error."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        with urlopen(Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"}), timeout=60) as reply:
            answer = json.load(reply)
        if answer.get("errors"):
            raise RuntimeError(str(answer["errors"]))
        return answer["data"]

    def materialize_all(self) -> Click:
        """Press the button, confirm its dialog, which is about all partitions of all assets, and wait."""
        sent = {
            "tags": [{"key": "dagster/from_ui", "value": "true"}],
            "assetSelection": [node["assetKey"] for node in self.ask(ASSETS)["assetNodes"]],
            "allPartitions": True,
            "fromFailure": False,
        }
        clicked = time.time()
        launched = self.ask(CLICK, p=sent)
        return self.clicked(launched["launchPartitionBackfill"]["backfillId"], clicked)

    def clicked(self, backfill: str, clicked: float, patience: float = 900.0) -> Click:
        """What became of the backfill that a click asked for at a time, when it is over."""
        status = "REQUESTED"
        while status == "REQUESTED" and time.time() - clicked < patience:
            time.sleep(1.0)
            status = self.ask(STATUS, id=backfill)["partitionBackfillOrError"]["status"]
        runs = sorted(self.ask(RUNS, tag=backfill)["runsOrError"]["results"], key=lambda run: run["creationTime"])
        return Click(max(run["endTime"] or time.time() for run in runs) - clicked, status, runs)


@contextmanager
def dagster_dev(root: Path) -> Iterator[Server]:
    """`make ui` for the project at `root`, in a Dagster instance of its own below it."""
    home = root / ".dagster"
    home.mkdir()
    settings = (REPOSITORY / "dagster.yaml").read_text()
    if "DAGSTER_POSTGRES_URL" in os.environ:
        settings += (REPOSITORY / "docs/examples/dagster-postgres.yaml").read_text()
    (home / "dagster.yaml").write_text(settings)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["dagster", "dev", "-w", str(REPOSITORY / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]
    with (home / "dev.log").open("w") as log:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=root,
            env=environment() | {"DAGSTER_HOME": str(home), "PD_PIPELINE_ROOT": str(root)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            server = Server(port)
            _wait_for(server, process, home / "dev.log")
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the definitions are loaded and the daemon looks at backfills."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(URLError, ConnectionError, RuntimeError):
            daemon = server.ask(DAEMON)["instance"]["daemonHealth"]["daemonStatus"]
            if server.ask(ASSETS)["assetNodes"] and daemon["healthy"]:
                return
        time.sleep(0.5)
    raise RuntimeError(f"dagster dev does not come up:\n{log.read_text()[-3000:]}")


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        by_hand = project(Path(folder) / "by_hand", quick)
        reference = timed(lambda: call(by_hand, "pd-pipeline", "run", "all"))
        clicked = project(Path(folder) / "clicked", quick)
        with dagster_dev(clicked) as server:
            click = server.materialize_all()
        load = os.getloadavg()[0]
        status = call(clicked, "dvc", "status").strip()
    if (click.status, status) != ("COMPLETED_SUCCESS", "Data and pipelines are up to date."):
        raise RuntimeError(f"the click ends as {click.status}; dvc status: {status}")
    figure = at_most("Materialize all / pd-pipeline run all", click.seconds, reference, "s", goal=3.0)
    waits = [run["startTime"] - run["creationTime"] for run in click.runs]
    return [figure], {"runs": len(click.runs), "seconds of waiting for runs to start": sum(waits), "load after": load}


if __name__ == "__main__":
    command("dagster_click", measure)
