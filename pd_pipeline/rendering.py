"""dvc.yaml, rendered from the graph: one DVC stage per stage, one item of its `foreach` per key.

DVC names the work `plm@reach-0` and `tuned_prompt_dt@reach-5-0`: stage, `@`, key. A `foreach` item contains the axes of
its key, which are filled into the template in `do`.

DVC tracks code and parameters through digests.json, next to dvc.yaml: it contains, per stage and family, one digest of
the files that the stage uses and one of its sections of params.yaml; where it reads trajectories of users, also one of
these, then per target. Each piece of work depends on its own entry. So an edit makes only the affected pieces stale,
the location of the installed package does not matter, a block that is left out equals an empty one, and DVC reads one
small file instead of params.yaml for each of hundreds of pieces. The stage `digests` depends on all these files and on
params.yaml and rewrites digests.json, for `dvc repro` and `dvc exp run`; `pd-pipeline` and Dagster rewrite it
themselves. Right after an edit, `dvc status` lists only `digests`; after `pd-pipeline graph --write` it lists the stale
pieces. Paths of a package that is installed elsewhere do not appear. Decisions on policies in use are no out of a stage
either: the report depends on their folders.

Outs are `persist`: otherwise DVC would remove them before the stage can refuse to replace files that it did not write.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pd_pipeline import made_from
from pd_pipeline.code_names import in_checkout, relative
from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.content import content_digest
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.incoming.store import NEW
from pd_pipeline.sources import PACKAGE
from pd_pipeline.stage import Key
from pd_pipeline.stages import AXES, TASK, TRAINED
from pd_pipeline.storage import atomic_file, digest, read_json

DVC_FILE = "dvc.yaml"
DIGESTS_FILE = "digests.json"
DIGESTS_STAGE = "digests"
HEADER = "# Rendered from params.yaml and pd_pipeline/graph.py by `pd-pipeline graph --write`: do not edit.\n"
_TEMPLATE_KEY = Key("${item.family}", "${item.task}", "${item.seed}")  # type: ignore[arg-type]


def address(stage: str, key: object) -> str:
    """DVC's name for a piece of work: `plm@reach-0`, `report`."""
    return f"{stage}@{key}" if str(key) else stage


def is_project(root: Path) -> bool:
    """Whether this folder is a DVC project."""
    return (root / ".dvc" / "config").is_file()


def code_files(graph: Graph) -> list[Path]:
    """All code files that outs depend on."""
    one_each = {(name, key.family): key for name in graph.stages for key in graph.keys(name)}
    return sorted({file for (name, _), key in one_each.items() for file in made_from.code(graph, name, key)})


def digests(graph: Graph, stage: str, key: Key) -> dict[str, str]:
    """Digests of the code and the parameters of a piece of work: the same for all keys of a stage and family.

    Which stages it reads is among its parameters: DVC does not notice that it reads one less. What reads those of all
    families has the methods themselves among its parameters.
    """
    parameters = made_from.sections_as_json(graph.values, made_from.sections(graph, stage, key)).values()
    reads = () if key.family is None else graph.stages[stage].needs
    found = {
        "code": made_from.code_digest(graph, stage, key),
        "parameters": digest(*parameters, *reads)[:16],
    }
    if recordings := made_from.recordings(graph, stage, key):
        found["recordings"] = content_digest(graph.root, recordings)[:16]
    return found


def all_digests(graph: Graph) -> dict[str, dict[str, dict[str, str]]]:
    """Stage -> family (`all` for a stage without families) -> digests."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for stage in graph.stages:
        for key in graph.keys(stage):
            of_stage, name = found.setdefault(stage, {}), entry(key)
            if name not in of_stage:
                of_stage[name] = digests(graph, stage, key)
    return found


def entry(key: Key) -> str:
    """The name of a key's digests in digests.json: its family, or `all`; with a task but no seed, the key itself."""
    return str(key) if key.task is not None and key.seed is None else key.family or "all"


def recording_files(graph: Graph) -> list[Path]:
    """The trajectory files of users that any piece of work reads, sorted."""
    one_each = {(name, key.family, key.task): key for name in graph.stages for key in graph.keys(name)}
    return sorted({file for (name, _, _), key in one_each.items() for file in made_from.recordings(graph, name, key)})


def recorded(root: Path, stage: str, key: Key) -> dict[str, str] | None:
    """The digests of a piece of work in digests.json; None if there are none."""
    if not (root / DIGESTS_FILE).is_file():
        return None
    found: dict[str, str] | None = read_json(root / DIGESTS_FILE).get(stage, {}).get(entry(key))
    return found


def render(graph: Graph) -> str:
    """The text of dvc.yaml."""
    lines = [*_digests_stage(graph), *(line for name in graph.stages for line in _stage(graph, name))]
    return f"{HEADER}stages:\n" + "\n".join([*lines, *_figures(graph)]) + "\n"


def definition(graph: Graph, stage: str, key: Key) -> dict[str, Any]:
    """What DVC makes of dvc.yaml for one piece of work: its entry of `foreach`, filled into the template.

    Parsing dvc.yaml takes DVC longer with each further piece, and it would do so for each of them.
    """
    found = graph.inputs(stage, key)
    inputs = {
        need: (found[need] if need in found else found["target_data"]).as_posix() for need in graph.stages[stage].needs
    }
    return _definition(graph, stage, key, str(key), inputs)


def check(graph: Graph) -> None:
    """Raise PipelineError if dvc.yaml differs from what `write` would write."""
    if _present(graph.root / DVC_FILE) != render(graph):
        path = graph.root / DVC_FILE
        raise PipelineError(f"{path}: does not match params.yaml and the code: run `pd-pipeline graph --write`")


def write(graph: Graph) -> bool:
    """Update dvc.yaml and digests.json. Returns whether one of them changed."""
    wanted = {
        graph.root / DVC_FILE: render(graph),
        graph.root / DIGESTS_FILE: json.dumps(all_digests(graph), indent=1, sort_keys=True) + "\n",
    }
    stale = {path: text for path, text in wanted.items() if _present(path) != text}
    for path, text in stale.items():
        with atomic_file(path) as temporary:
            temporary.write_text(text)
    return bool(stale)


def pieces_of(text: str | None) -> str:
    """The part of a dvc.yaml that names stages and keys, without the stage that writes digests.json."""
    _, _, after = (text or "").partition(f"    - {DIGESTS_FILE}:\n")
    return after


def _present(path: Path) -> str | None:
    try:
        return path.read_text() if path.is_file() else None
    except UnicodeDecodeError:
        return None


def _digests_stage(graph: Graph) -> Iterator[str]:
    """The lines of the stage that writes digests.json, for DVC's own commands."""
    files = code_files(graph)
    if not in_checkout(graph.root):
        files = [file for file in files if PACKAGE not in file.parents]
    files += sorted({file.parent for file in recording_files(graph)})  # a new file beside them matters too
    yield f"  {DIGESTS_STAGE}:"
    yield "    cmd: pd-pipeline graph --write"
    if files:
        yield "    deps:"
        yield from (f"    - {_plain(relative(file, graph.root))}" for file in files)
    yield "    params:"
    yield f"    - {PARAMS_FILE}:"  # all of it: a block may be added or left out
    yield "    outs:"
    yield f"    - {DIGESTS_FILE}:"
    yield "        cache: false"
    yield "        persist: true"


def _stage(graph: Graph, name: str) -> Iterator[str]:
    """The lines of one stage, with all its keys."""
    stage, keys = graph.stages[name], graph.keys(name)
    yield f"  {name}:"
    if not stage.axes:
        yield from (f"    {line}" for line in _body(graph, name, Key()))
        return
    yield "    foreach:"
    with_new = any(graph.is_new(key) for key in keys)
    absent = _absent(graph, name)
    for key in keys:
        items = {axis: getattr(key, axis) for axis in AXES if axis in stage.axes}
        if with_new:
            items["new"] = NEW if graph.is_new(key) else ""
        if absent:
            found = graph.inputs(name, key)
            items |= {need: found.get(need, found["target_data"]).as_posix() for need in absent}
        yield f"      {_plain(str(key))}: {{{', '.join(f'{n}: {_plain(v)}' for n, v in items.items())}}}"
    yield "    do:"
    template = Key(*(getattr(_TEMPLATE_KEY, axis) if axis in stage.axes else None for axis in AXES))
    for line in _body(graph, name, template, absent):
        # `Graph.out` adds NEW to the folder of a new target, but a template may stand for any target: the item says it.
        # Without new targets no item does, and dvc.yaml stays as it is.
        yield "      " + (line.replace("/${item.task}", "${item.new}/${item.task}") if with_new else line)


def _absent(graph: Graph, name: str) -> list[str]:
    """The stages that some keys of a stage do not read: methods that lack trajectories of a target.

    DVC gives all keys of a stage the same number of dependencies. So the path of such an input is part of each item,
    and where there is none, it is that of target_data again, which changes nothing.
    """
    if not graph.stages[name].accepted_only:
        return []
    inputs = [graph.inputs(name, key) for key in graph.keys(name)]
    return [need for need in graph.stages[name].needs if any(need not in found for found in inputs)]


def _body(graph: Graph, name: str, key: Key, absent: Collection[str] = ()) -> Iterator[str]:
    """Command, dependencies and out of one piece of work, or of all of them if `key` is a template.

    `absent`: the inputs whose path each item names.
    """
    needs = graph.stages[name].needs
    inputs = {need: f"${{item.{need}}}" if need in absent else _input(graph, name, key, need) for need in needs}
    parts = _definition(graph, name, key, "${key}" if graph.stages[name].axes else "", inputs)
    yield f"cmd: {parts['cmd']}"
    if "deps" in parts:
        yield "deps:"
        yield from (f"- {_plain(path)}" for path in parts["deps"])
    yield "params:"
    yield f"- {DIGESTS_FILE}:"
    yield from (f"  - {_plain(each)}" for each in parts["params"][0][DIGESTS_FILE])
    yield "outs:"
    (out,) = parts["outs"][0]
    yield f"- {_plain(out)}:"
    yield "    persist: true"


def _definition(graph: Graph, stage: str, key: Key, text: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """DVC's entry of a stage for a key, or the template of one, whose `text` and `inputs` are given."""
    deps = [*inputs.values(), *(relative(folder, graph.root) for folder in made_from.decision_folders(graph, stage))]
    return {
        "cmd": f"pd-pipeline run {stage}" + (f" --key {text}" if text else ""),
        **({"deps": deps} if deps else {}),
        "params": [{DIGESTS_FILE: [f"{stage}.{entry(key)}"]}],
        "outs": [{graph.out(stage, key).as_posix(): {"persist": True}}],
    }


def _figures(graph: Graph) -> Iterator[str]:
    """What `dvc metrics` and `dvc plots` show: the metrics of the report and the losses of pre-training."""
    yield "metrics:"
    yield f"- {_plain((graph.out('report', Key()) / 'metrics.json').as_posix())}"
    yield "plots:"
    for stage in (name for name in TRAINED if name in graph.stages):
        yield f"- {stage} losses:"
        yield "    x: step"
        yield "    y:"
        for key in graph.keys(stage):
            yield f"      {_plain((graph.out(stage, key) / 'losses.csv').as_posix())}: [loss, validation_loss]"


def _input(graph: Graph, name: str, key: Key, need: str) -> str:
    """Like `Graph.input`, but `key` may be a template: axes that the upstream stage lacks are dropped."""
    mine, theirs = graph.stages[name].axes, graph.stages[need].axes
    if not mine:
        return graph.input(name, key, need).as_posix()
    other = Key(*(getattr(key, axis) if axis in theirs else None for axis in AXES))
    path = graph.out(need, other)
    return (path.parent if TASK in theirs and TASK not in mine else path).as_posix()


def _plain(value: str | int) -> str:
    """A YAML scalar, quoted if it would otherwise not be read back as the same string."""
    text = str(value)
    reserved = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
    safe = re.fullmatch(r"[\w./@+\-${}]+", text) and text.lower() not in reserved and not text.startswith(("@", "-"))
    return text if isinstance(value, int) or safe else json.dumps(text)
