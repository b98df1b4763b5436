"""Promotion: which policy of a target is in use, and why.

    data/promoted/reach-5/
        current.json            the version in use, since when, and by which decision
        0001/  0002/            policy folders: every version that was ever in use
        decisions/0001.json     what was compared, with its figures (`pd_pipeline.decisions`)

A new policy replaces the one in use only if it is not worse: both act in the same episodes (same starts), or, where
nothing can simulate the target, predict the same held-out trajectories, and the 95 % interval of their paired
difference must lie above minus the margin. Otherwise the refusal is written down. A person may put it in use all the
same: the only way on where the policy in use is damaged.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pd_pipeline import lineage, locks
from pd_pipeline.alerts import alert
from pd_pipeline.decisions import (
    CURRENT,
    Decision,
    current,
    current_if_any,
    decisions,
    folder_of,
    numbered,
    write_decision,
)
from pd_pipeline.deployment.candidates import candidate_of, digests_of, is_decided, versions
from pd_pipeline.deployment.folder import Description, check_files, current_policy, describe
from pd_pipeline.deployment.scoring import paired_scores
from pd_pipeline.deployment.used import digests_used, numbers_used
from pd_pipeline.deployment.writing import write_policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.statistics import student
from pd_pipeline.graph import Graph
from pd_pipeline.stage import Key
from pd_pipeline.stages import TUNED
from pd_pipeline.storage import remove, write_json
from pd_pipeline.tuning import summary

CANDIDATE = ".candidate"


def promote(
    graph: Graph, target: str, say: Callable[[str], None] = lambda _: None, *, force: bool = False
) -> Decision | None:
    """Compare the tuned policy of a target with the one in use, and put it in use unless it is worse.

    With `force`, nothing is compared: it is put in use. Returns the decision; None if nothing is new since the last
    one. Raises PipelineError if the target is unknown, its policy has not been tuned or the one in use is damaged. A
    kill at any instant leaves the old policy in use, or the new one.
    """
    method, key = candidate_of(graph, target)
    home = folder_of(graph.root, target)
    with locks.held(graph.root, "promote", target):
        earlier = _finished(graph.root, target)
        if is_decided(graph, target) and not (force and _changes_anything(graph, method, key, earlier)):
            return None
        made = home / CANDIDATE
        if made.exists():
            remove(made)
        try:
            new = write_policy(graph, method, key, made)
            decision = _decide(graph, key, method, new, made, force, say)
            if decision.outcome == "promoted":
                assert decision.version is not None
                made.rename(home / f"{decision.version:04d}")
            _write(home, decision, _next(home))
        finally:
            if made.exists():
                remove(made)
    if lineage.is_recording(graph):
        lineage.keep_rendered(graph)  # so that DVC knows the folder of the first decision
    if decision.outcome == "refused":
        alert(graph, "refusal", target, decision.reason)
    return decision


def roll_back(root: Path, target: str) -> Decision:
    """Put the version in use that the current one replaced. Raises PipelineError if there is none, or it is damaged."""
    home = folder_of(root, target)
    with locks.held(root, "promote", target):
        earlier = _finished(root, target)
        now = current(home).version
        replaced = [d.against for d in earlier if (d.outcome, d.version) == ("promoted", now)]
        older = [version for version in versions(home) if version < now]
        before = replaced[0] if replaced else max(older, default=None)  # the decision may have been lost
        if before is None:
            raise PipelineError(f"{home}: version {now} is the oldest one: there is nothing to go back to")
        known = describe(back := home / f"{before:04d}")
        check_files(back, known)
        decision = Decision(
            outcome="rolled back",
            version=before,
            against=now,
            reason=f"version {before} is in use again, by hand",
            decided=_now(),
            family=known.family,
            task=known.task,
            seed=known.seed,
            method=known.method,
            made_from=known.made_from,
        )
        _write(home, decision, _next(home))
    return decision


def _changes_anything(graph: Graph, method: str, key: Key, made: list[Decision]) -> bool:
    """Whether the tuned policy is another one than that in use, or the files of that are damaged."""
    in_use = next((one for one in reversed(made) if one.version is not None), None)
    if in_use is None or (in_use.method, in_use.made_from) != (method, digests_of(graph, method, key)):
        return True
    try:
        _intact(folder_of(graph.root, f"{key.family}-{key.task}"))
    except PipelineError:
        return True
    return False


def _decide(
    graph: Graph,
    key: Key,
    method: str,
    new: Description,
    made: Path,
    force: bool,
    say: Callable[[str], None],
) -> Decision:
    """Compare the policy folder `made` with the one in use, unless a person decides (`force`)."""
    out = graph.root / graph.out(f"{TUNED}{method}", key)
    given = summary.load(out)
    used = {given.quality: {*given.few_shot_episodes}}
    used.setdefault(given.prompt_quality, set()).update(given.prompt_episodes)
    common: dict[str, Any] = {
        "decided": _now(),
        "family": new.family,
        "task": new.task,
        "seed": new.seed,
        "method": method,
        "used_episodes": {quality: tuple(sorted(episodes)) for quality, episodes in used.items()},
        "used_digests": digests_used(graph, key, used),
        "made_from": new.made_from,
    }
    home = made.parent
    decided = decisions(graph.root, home.name)
    version = 1 + max([*versions(home), *(one.version or 0 for one in decided)], default=0)
    now = current_if_any(home)
    before = None if now is None else now.version
    if before is None or force:
        why = "it is the first one" if before is None else "by hand, without a comparison"
        return Decision(outcome="promoted", version=version, against=before, reason=why, **common)
    incumbent = _intact(home)
    tuned = [d for d in decided if d.outcome == "promoted"]  # these name what it was tuned on
    earlier = next((d for d in tuned if d.version == before), None)
    seen = numbers_used(graph, key, earlier) if earlier else {}
    found = paired_scores(graph, key, made, incumbent, [used, seen], say)
    margin = graph.params.promotion.margin * abs(float(found.in_use.mean()))
    better = found.sign * (found.candidate - found.in_use)
    estimate = student(float(better.mean()), better)
    worse = estimate.low <= -margin
    text = f"better by {estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g}) in {found.measure}"
    return Decision(
        outcome="refused" if worse else "promoted",
        version=None if worse else version,
        against=before,
        reason=f"{text}; {'not ' if worse else ''}above minus the margin of {margin:.4g}",
        measure=found.measure,
        count=len(better),
        candidate=float(found.candidate.mean()),
        in_use=float(found.in_use.mean()),
        better_by=(estimate.value, estimate.low, estimate.high),
        margin=margin,
        **common,
    )


def _intact(home: Path) -> Path:
    """The policy folder in use. Raises PipelineError, with a way out, if it is damaged."""
    try:
        check_files(found := current_policy(home), describe(found))
    except PipelineError as error:
        raise PipelineError(
            f"{error}; until then nothing can be compared with it: `pd-pipeline promote {home.name} --rollback` goes "
            "back to the version before, --force puts the tuned policy in use without a comparison"
        ) from None
    return found


def _write(home: Path, decision: Decision, number: int) -> None:
    """Write a decision, then what is in use since."""
    write_decision(home, decision, number)
    _use(home, decision, number)


def _next(home: Path) -> int:
    """The number of the next decision: above all others, and above that of the one in use, should it have been lost."""
    now = current_if_any(home)
    return 1 + max(0 if now is None else now.decision, *numbered(home), 0)


def _use(home: Path, decision: Decision, number: int) -> None:
    """Put the version of a decision in use, if it names one."""
    if decision.version is not None:
        write_json(home / CURRENT, {"version": decision.version, "since": decision.decided, "decision": number})


def _finished(root: Path, target: str) -> list[Decision]:
    """All decisions on a target, after the last one took effect: a kill may have come between both."""
    home = folder_of(root, target)
    made = numbered(home)
    last = max((number for number, decision in made.items() if decision.version is not None), default=0)
    try:
        written = current(home).decision
    except PipelineError:
        written = 0  # lost or damaged: the decisions know
    if written < last:
        _use(home, made[last], last)
    return [*made.values()]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
