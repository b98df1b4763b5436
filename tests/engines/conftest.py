"""One Ray cluster on this machine at a time, whichever process a test runs in: Ray starts no second one."""

import fcntl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE = 60.0
"""Seconds that the processes of a cluster may take to end."""


@pytest.fixture
def alone() -> Iterator[None]:
    """Waits for the tests of other processes that have a cluster, and for the end of what these started."""
    from ray._private.services import find_gcs_addresses

    with (Path(tempfile.gettempdir()) / "pd_pipeline-tests-ray.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        deadline = time.monotonic() + PATIENCE
        while find_gcs_addresses() and time.monotonic() < deadline:
            time.sleep(0.2)
        yield
