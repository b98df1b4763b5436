"""Reading YAML that a user wrote: params.yaml and the files of studies. Bounds keep a typo from using up the memory."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pd_pipeline.errors import PipelineError

MAX_BYTES = 1 << 20  # of a file
MAX_VALUES = 200_000  # in a file; an alias counts each time it is used
MAX_DEPTH = 50  # levels of nested blocks


def read_file(path: Path) -> str:
    """Read a parameter file. Raises PipelineError if it is too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise PipelineError(f"{path}: larger than {MAX_BYTES:,} bytes: not a parameter file")
        return content.decode()
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from None


def values_of(text: str, path: Path) -> Any:
    """Parse YAML 1.2, as DVC does (PyYAML reads 1e-3 as a string). Raises PipelineError if it is invalid."""
    try:
        values = YAML(typ="safe", pure=True).load(text)
        if _size(values, 0, {}) > MAX_VALUES:
            raise PipelineError(f"{path}: contains more than {MAX_VALUES:,} values, counting each use of an alias")
        _refuse_unreadable_for_dvc(text, path)
    except DuplicateKeyError as error:  # its full text gives advice about settings of the YAML library
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise PipelineError(f"{path}{line}: {error.problem}: keep one of the two") from None
    except YAMLError as error:
        raise PipelineError(_said(error, path)) from None
    except RecursionError:
        raise PipelineError(f"{path}: nested too deeply: no block has more than {MAX_DEPTH} levels") from None
    except (ValueError, OverflowError) as error:  # a date or a number that Python cannot hold
        if isinstance(error, PipelineError):
            raise
        raise PipelineError(f"{path}: not valid YAML: {error}") from None
    return values


def _refuse_unreadable_for_dvc(text: str, path: Path) -> None:
    """Raise PipelineError where the parser in C, which DVC uses, fails: it wants some texts within braces in quotes."""
    try:
        YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        raise PipelineError(f"{_said(error, path)} for DVC: quote texts with a colon, such as URLs") from None


def _said(error: YAMLError, path: Path) -> str:
    """What is wrong in a file, and in which line."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"{path}: not valid YAML: {error}"
    found = f"{path}, line {error.problem_mark.line + 1}: not valid YAML: {error.problem}"
    if "alias" in (error.context or ""):
        return f"{found}: '*' begins the name of an alias: quote a text that begins with it, such as '* * * * *'"
    return f"{found} {error.context}" if error.context else found


def _size(value: Any, depth: int, known: dict[int, int]) -> int:
    """Number of values in `value`; one that is used twice (a YAML alias) counts twice but is visited once."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if id(value) in known:
        return known[id(value)]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    known[id(value)] = size = 1 + sum(_size(item, depth + 1, known) for item in inside)
    return size


def merged(values: Any, base: Mapping[str, Any]) -> Any:
    """`values`, replaced by those of `base`, block by block."""
    if not isinstance(values, Mapping):
        return deepcopy(dict(base))
    blocks = [name for name, value in base.items() if isinstance(value, Mapping) and name in values]
    return {**values, **deepcopy(dict(base)), **{name: merged(values[name], base[name]) for name in blocks}}
