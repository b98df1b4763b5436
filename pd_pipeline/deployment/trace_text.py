"""What `pd-pipeline lineage` prints: a tree from the policy to raw trajectories."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pd_pipeline.deployment.ancestry import Piece, Source
from pd_pipeline.deployment.trace import STATES, State, Trace, few_shot_of

STEP = "  "


def lines(found: Trace) -> Iterator[str]:
    """The lines of a trace."""
    yield from _policy(found)
    yield ""
    pieces = {piece.name: piece for piece in found.lineage.pieces}
    one_environment = len({json.dumps(p.environment, sort_keys=True) for p in pieces.values()}) == 1
    first = found.lineage.pieces[0]
    if one_environment:
        yield f"environment of {found.policy.family}: {_values(first.environment, first.environment_changed)}"
        yield ""
    yield from _tree(found, pieces, first.name, 0, set(), not one_environment)
    if found.check is not None:
        yield ""
        yield _verdict(found)


def _policy(found: Trace) -> Iterator[str]:
    about, decision = found.policy, found.decision
    name = f"{about.family}-{about.task}"
    if found.version is None:
        yield f"{name}: the policy in {found.folder}"
    elif found.in_use:
        yield f"{name}: version {found.version}, in use since {found.since or 'an unknown time'}"
    else:
        yield f"{name}: version {found.version}, not in use"
    if decision is not None:
        against = "" if decision.against is None else f" instead of version {decision.against}"
        yield f"{STEP}promoted {decision.decided}{against}: {decision.reason}"
        if decision.measure is not None:
            yield (
                f"{STEP}{decision.measure} over {decision.count}: {decision.candidate:.4g}, the one before "
                f"{decision.in_use:.4g}"
            )
    elif found.version is not None:
        yield f"{STEP}no decision put it in use"
    actors = len(about.actor_losses)
    yield f"{STEP}{about.method}, seed {about.seed}, actor {about.actor} of {actors}: {about.chosen_by}"
    versions = ", ".join(f"{package} {version}" for package, version in about.versions.items())
    yield f"{STEP}written at revision {found.lineage.revision} with {versions}"
    yield f"{STEP}files in {found.folder}:"
    state = found.check.policy if found.check is not None else {}
    for file, digest in sorted(about.files.items()):
        yield f"{STEP}{STEP}{digest}  {file}{_state(state.get(file))}"
    if state.get("policy.json") == "changed":
        yield f"{STEP}{STEP}policy.json does not agree with lineage.json or with the decision: changed since"


def _tree(
    found: Trace, pieces: Mapping[str, Piece], name: str, depth: int, shown: set[str], with_environment: bool
) -> Iterator[str]:
    """A piece and what it was made from; each is described once."""
    piece, margin = pieces[name], STEP * depth
    if name in shown:
        yield f"{margin}{name}: see above"
        return
    shown.add(name)
    state = found.check.pieces.get(name) if found.check is not None else None
    yield f"{margin}{name}: {piece.out}{_state(state)}"
    for line in _description(piece, with_environment):
        yield f"{margin}{STEP}{line}"
    if depth == 0:
        for quality, episodes in found.lineage.tuned_on.items():
            yield f"{margin}{STEP}few-shot episodes of target_data: {quality} {', '.join(map(str, episodes))}"
    for source in piece.sources:
        state = found.check.sources.get(source.file) if found.check is not None and source.file is not None else None
        for number, line in enumerate(_source(source, found)):
            yield f"{margin}{STEP}{STEP if number else ''}{line}{'' if number else _state(state)}"
    for need in piece.needs:
        yield from _tree(found, pieces, need, depth + 1, shown, with_environment)
    for need, digest in piece.replaced.items():
        known = f" with digest {digest}" if digest is not None else ""
        yield f"{margin}{STEP}{need}: an out{known} that had been made again, so nothing else is known of it"


def _description(piece: Piece, with_environment: bool) -> Iterator[str]:
    if piece.digest is not None:
        yield f"digest {piece.digest}"
    if piece.md5 is not None:
        yield f"in DVC {piece.md5}"
    if piece.code is None:
        yield "how it was made is not known: it has no record here, and dvc.lock has another out"
        return
    made_by = [f"code {piece.code}", f"pd_pipeline {piece.version}" if piece.version is not None else "", _at(piece)]
    yield ", ".join(part for part in made_by if part)
    if piece.device is not None:
        yield f"computed on {piece.device}" + (f" in {piece.precision}" if piece.precision is not None else "")
    yield f"parameters: {_values(piece.parameters, piece.changed)}"
    if with_environment:
        yield f"environment: {_values(piece.environment, piece.environment_changed)}"


def _at(piece: Piece) -> str:
    if piece.revision is not None:
        return f"revision {piece.revision}"
    if piece.committed is not None:
        return f"made elsewhere, in dvc.lock since revision {piece.committed}"
    return "made elsewhere, at a revision that is not known here"


def _values(everything: Mapping[str, Any] | None, changed: Mapping[str, Any]) -> str:
    if everything is None:
        return "not known"
    if not changed:
        return "the defaults" if everything else "none"
    named = ", ".join(f"{name}={_compact(value)}" for name, value in changed.items())
    return f"{named}; else the defaults" if set(everything) - set(changed) else named


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _source(source: Source, found: Trace) -> Iterator[str]:
    file = source.file or "a file that is not here any more"
    if source.kind == "collected":
        yield f"{source.quality}: {file}, collected with seed {source.seed}"
        if source.behavior is not None:
            yield f"behaviour: {', '.join(f'{name}={_compact(value)}' for name, value in source.behavior.items())}"
    elif source.kind == "accepted":
        yield f"{source.quality}: {file}, accepted {source.time} from {source.dropped}"
        used = few_shot_of(source, found.lineage)
        yield f"few-shot episodes that are in it: {', '.join(map(str, used)) or 'none'}"
    else:
        written = f", written {source.time}" if source.time is not None else ""
        yield f"{source.quality}: {file}, {'imported' if source.kind == 'imported' else 'a file of your own'}{written}"
    if source.digest is not None:
        yield f"digest {source.digest}"
    for origin in source.origin:
        dataset = f", data set {origin.dataset}" if origin.dataset is not None else ""
        options = f", {', '.join(f'{n}={_compact(v)}' for n, v in origin.options.items())}" if origin.options else ""
        yield f"from {origin.source} ({origin.format}{dataset}{options}), digest {origin.digest}"


def _state(state: State | None) -> str:
    return "" if state is None else f" [{STATES[state]}]"


def _verdict(found: Trace) -> str:
    assert found.check is not None
    if not found.check.good:
        return "the policy is not the one that was written: copy its folder again, or roll back"
    states = Counter([*found.check.pieces.values(), *found.check.sources.values()])
    upstream = ", ".join(f"{states[state]} {meaning}" for state, meaning in STATES.items() if states[state])
    return f"the policy's files are those that were written; upstream: {upstream}"
