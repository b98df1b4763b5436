"""Keeps Dagster's tests apart."""

from collections.abc import Iterator

import pytest
from dagster._core.definitions.partitions import context


@pytest.fixture(autouse=True)
def no_context_of_another_test() -> Iterator[None]:
    """Dagster keeps the instance that partitions are loaded from in a context variable, also after a failed run."""
    token = context._current_ctx.set(None)
    yield
    context._current_ctx.reset(token)
