"""Hostile parameter files: refused in one line, before any work, in bounded time."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pd_pipeline import graph, preflight
from tests.dvc_project import SMALL_PARAMS
from tests.faults.files import _problem
from tests.faults.report import Attack

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
WHOLE: tuple[bytes, ...] = (
    b"",
    b"\x00" * 100,
    b"\xff\xfe" + SMALL_PARAMS.encode("utf-16-le"),
    SMALL_PARAMS.encode("utf-16"),
    SMALL_PARAMS.encode() + b"\xff",
    b"[" * 2_000,
    b"a: " * 50_000,
    b"{" * 1_000 + b"}" * 1_000,
    LAUGHS.encode(),
    (SMALL_PARAMS + LAUGHS).encode(),
    b"run: !!python/object/apply:os.system [echo]\n",
    b"run: &a [*a]\n",
    b"- 1\n- 2\n",
    b"42\n",
    b"%YAML 9.9\n---\nrun: {}\n",
    b"run: {families: [point_robot]}\nrun: {families: [point_robot]}\n",
    b"x" * (2 << 20),
    b"? [complex, key]\n: value\n",
    b"run: 2020-13-45\n",
)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 0.5, 10**6, 10**8, 10**9, 10**18, 2**63, 2**64, -(2**63), 1e300,
    float("inf"), float("nan"), "", "abc", "cuda", "cuda:7", "tpu", "5", ":", "..x:Y", "os:getcwd",
    "no_such:Thing", "broken_module:Thing", "leaving_module:Thing", "../../x", "/etc/passwd",
    "a\x1b[2Jb", "x" * 5000, [], {}, [[]], [0, 0], {"a": 1}, [10**9], list(range(2000)),
)  # fmt: skip


def attack(folder: Path, tries: int, seed: int = 0) -> Attack:
    """Write parameter files and load them as every command does, up to the checks before any work."""
    found = Attack("hostile parameter files")
    (folder / "broken_module.py").write_text("def Thing(:\n")
    (folder / "leaving_module.py").write_text("raise SystemExit(0)\n")
    for name, content in _files(random.Random(seed), tries):
        (folder / "params.yaml").write_bytes(content)
        found.survived(_problem(lambda: _checked(folder), name))
    return found


def _checked(folder: Path) -> None:
    preflight.check(graph.load(folder))


def _files(rng: random.Random, tries: int) -> Iterator[tuple[str, bytes]]:
    for index, content in enumerate(WHOLE[:tries]):
        yield f"whole file {index}", content
    base = YAML(typ="safe").load(SMALL_PARAMS)
    places = [place for place in _places(base, ()) if place]
    for _ in range(max(0, tries - len(WHOLE))):
        values, place, value = copy.deepcopy(base), rng.choice(places), rng.choice(VALUES)
        inner = values
        for part in place[:-1]:
            inner = inner[part]
        if rng.random() < 0.15 and isinstance(inner, dict):
            inner[f"{place[-1]}z"] = inner.pop(place[-1])  # a typo
            name = f"{'.'.join(map(str, place))} misspelt"
        else:
            inner[place[-1]] = value
            name = f"{'.'.join(map(str, place))} = {str(value)[:30]!r}"
        yield name, _text(values)


def _places(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _places(inner, (*place, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _places(inner, (*place, index))


def _text(values: Any) -> bytes:
    import json

    return json.dumps(values).replace("NaN", ".nan").replace("Infinity", ".inf").encode()  # JSON is YAML
