"""Two policies of one target on equal terms: the same episodes, or the same held-out trajectories."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pd_pipeline.acting.actors import Actors, Origin
from pd_pipeline.acting.environments import episode_seed
from pd_pipeline.deployment.folder import Description
from pd_pipeline.deployment.policy import Loaded, Policy, read_policy
from pd_pipeline.deployment.rollout import roll_out
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.enough import LEAST_HELD_OUT, TooFew
from pd_pipeline.evaluation.offline import OfflineParams
from pd_pipeline.graph import Graph
from pd_pipeline.models.prefixes import stored
from pd_pipeline.stage import Key
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories, read
from pd_pipeline.tuning.action_losses import action_losses

RETURN, ACTION_LOSS = "return", "action_loss"
FIRST_START = 1 << 20
"""The episodes begin in other states than those of evaluation, on which settings may have been chosen."""


class PairedScores(NamedTuple):
    """Scores of both policies, n pairs."""

    measure: str
    sign: int
    """1 if more is better, -1 if less is."""
    candidate: np.ndarray  # (n,)
    in_use: np.ndarray  # (n,)


def paired_scores(
    graph: Graph,
    key: Key,
    candidate: Path,
    in_use: Path,
    used: Sequence[Mapping[str, set[int]]],
    say: Callable[[str], None],
) -> PairedScores:
    """Score two policy folders for the target of `key`.

    They act in params.yaml's `promotion.episodes` episodes; where no environment knows the task, they predict the
    held-out trajectories of the target, those that are in none of `used` (quality -> episodes). Quality and steps of
    these are those of `evaluation.offline`, and the losses of both are in the action units of the policy in use: bounds
    of actions may have changed since. Raises TooFew if too few are left, PipelineError if the policies are of other
    sizes, or of other horizons and one of them is too short.
    """
    assert key.family is not None
    assert key.task is not None
    family, target = graph.family(key.family), f"{key.family}-{key.task}"
    policies = [read_policy(folder) for folder in (candidate, in_use)]
    about = [loaded.description for loaded in policies]
    _refuse_others(target, about, "observation_size", "action_size")
    if family.simulates([key.task]):
        _refuse_others(target, about, "horizon")
        count = graph.params.promotion.episodes
        seeds = [episode_seed(FIRST_START, key.task, number, 0) for number in range(count)]
        scores = []
        for name, loaded in zip(("the new policy", "the policy in use"), policies, strict=True):
            say(f"{target}: {count} episodes with {name}")
            made = roll_out(Policy(loaded, count), graph.root, count, seeds)
            scores.append(np.array([episode.episode_return for episode in made]))
        return PairedScores(RETURN, 1, *scores)
    asked = OfflineParams(**graph.stage_params("evaluation", Key(key.family, seed=key.seed)).model_dump()["offline"])
    held_out = _held_out(graph, key, asked.quality, used)
    say(f"{target}: action loss on {len(held_out.task_id)} held-out trajectories")
    if int(held_out.lengths.max()) > min(each.horizon for each in about):
        _refuse_others(target, about, "horizon")
    unit = policies[1].normalization.action_std
    losses = [_losses(loaded, PolicyData(held_out, loaded.normalization), asked.steps, unit) for loaded in policies]
    return PairedScores(ACTION_LOSS, -1, *losses)


def _refuse_others(target: str, policies: Sequence[Description], *names: str) -> None:
    """Raise PipelineError if two policies, the new one first, cannot act in the same episodes."""
    for name in names:
        new, old = (getattr(policy, name) for policy in policies)
        if new != old:
            raise PipelineError(
                f"{target}: {name} is {new} for the new policy and {old} for the one in use, so that they cannot be "
                f"compared: `pd-pipeline promote {target} --force` puts the new one in use without a comparison"
            )


def _held_out(graph: Graph, key: Key, quality: str, used: Sequence[Mapping[str, set[int]]]) -> Trajectories:
    """The trajectories of the target that are in none of `used`. Raises TooFew if too few for an interval are left."""
    assert key.family is not None
    assert key.task is not None
    path = graph.root / graph.out("target_data", Key(key.family, key.task)) / f"{quality}.parquet"
    data = read(path, family=graph.family(key.family), new_task=key.task)
    seen = set().union(*(part.get(quality, set()) for part in used))
    left = np.flatnonzero(~np.isin(data.episode_id, sorted(seen)))
    if len(left) < LEAST_HELD_OUT:
        raise TooFew(key.task, len(left), quality)
    return data.select(left)


def _losses(loaded: Loaded, data: PolicyData, steps: int | None, unit: np.ndarray) -> np.ndarray:
    """Action loss (m,) of a policy along m trajectories, over `steps` steps of each; None: all. `unit` (d_a,): 1."""
    units = loaded.normalization.action_std / unit
    return action_losses(actor_of(loaded), data, steps, loaded.description.precision == "bf16", units)[0]


def actor_of(loaded: Loaded) -> Actors:
    """The policy of a policy folder as one actor."""
    flat = tuple(tensor for pair in loaded.prefix for tensor in pair)
    about = loaded.description
    return Actors(loaded.plm, stored, flat, (Origin(about.origin, about.origin_step),))
