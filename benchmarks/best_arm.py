"""How close prompt_bandit comes to the best arm.

In the folder of a finished project: `python -m benchmarks.best_arm FAMILY STAGE ...`.

Every arm (a segment of the few-shot trajectories) acts from the same start states. The best one is then measured on
other starts, beside the prompt of each stage (`tuned_prompt_bandit`, a variant). Prints one line of JSON per target and
seed; the last line has the smallest ratio of each stage's return to that of the best arm, for families whose returns
are positive.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pd_pipeline import graph
from pd_pipeline.acting.actors import prompted
from pd_pipeline.acting.environments import LocalBatch
from pd_pipeline.acting.rollouts import Group, rollout
from pd_pipeline.families.base import Family
from pd_pipeline.graph import Graph
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Prompts, cut
from pd_pipeline.stage import Key
from pd_pipeline.trajectories.reading import read
from pd_pipeline.tuning import summary
from pd_pipeline.tuning.protocol import Pretrained

STARTS = 20
FIRST_STARTS, OTHER_STARTS = 10_000, 20_000


def mean_returns(
    plm: Pretrained, family: Family, task: int, prompts: Prompts, target_return: float, first: int
) -> np.ndarray:
    """Mean returns (n,) of n prompts over the same starts."""
    count, total = len(prompts), np.zeros(len(prompts))
    group = Group(np.arange(count), prompted(plm.policy, prompts, plm.normalization))
    batch = LocalBatch(family, [task] * count, [0] * count)
    for start in range(first, first + STARTS):
        targets = np.full(count, target_return)
        total += rollout([group], targets, plm.normalization, batch, silent, "", seeds=[start] * count).returns
    batch.close()
    return total / STARTS


def measure(project: Graph, name: str, stages: list[str]) -> Iterator[dict[str, float | str]]:
    """One row per target and seed."""
    root, family = project.root, project.family(name)
    for seed in project.params.run.seeds:
        plm = Pretrained.load(root / project.out("plm", Key(name, None, seed)), None, torch.device("cpu"))
        for task in family.test_tasks:
            outs = {stage: root / project.out(stage, Key(name, task, seed)) for stage in stages}
            tuned = summary.load(outs[stages[0]])
            trajectories = root / project.out("trajectories", Key(name)) / f"{tuned.quality}.parquet"
            data = read(trajectories, [task], family=family)
            few_shot = data.select(np.flatnonzero(np.isin(data.episode_id, tuned.few_shot_episodes)))
            arms = cut(few_shot, plm.policy.config.prompt_length)
            found = mean_returns(plm, family, task, arms, tuned.target_return, FIRST_STARTS)
            kept = [Prompts.load(out / "prompts.safetensors").select(np.array([0])) for out in outs.values()]
            shown = [arms.select(np.array([found.argmax()])), *kept]
            returns = [float(mean_returns(plm, family, task, p, tuned.target_return, OTHER_STARTS)[0]) for p in shown]
            row: dict[str, float | str] = {"piece": f"{name}-{task}-{seed}", "quality": tuned.quality}
            row |= {"arms": len(arms), "mean_arm": float(found.mean()), "worst_arm": float(found.min())}
            yield row | {"best_arm": returns[0]} | dict(zip(stages, returns[1:], strict=True))


def main() -> None:
    """Measure the project in the current directory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.best_arm")
    parser.add_argument("family")
    parser.add_argument("stages", nargs="+", metavar="stage", help="such as tuned_prompt_bandit")
    given = parser.parse_args()
    name, stages = given.family, given.stages
    rows = list(measure(graph.load(Path.cwd()), name, stages))
    for row in rows:
        print(json.dumps(row))
    least = {stage: min(float(row[stage]) / float(row["best_arm"]) for row in rows) for stage in stages}
    print(json.dumps({"least_ratio": least, "starts": STARTS}))


if __name__ == "__main__":
    main()
