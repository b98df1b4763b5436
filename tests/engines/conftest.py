"""One Ray cluster on this machine at a time: Ray starts no second one. Its tests are a group."""

import time

import pytest

PATIENCE = 60.0
"""Seconds that the processes of a cluster may take to end."""


@pytest.fixture
def alone() -> None:
    """Waits for the end of what the test before started."""
    from ray._private.services import find_gcs_addresses

    deadline = time.monotonic() + PATIENCE
    while find_gcs_addresses() and time.monotonic() < deadline:
        time.sleep(0.2)
