"""The stage evaluation under a seed of its own, computed a second time: rollouts, scores and metrics."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pd_pipeline.acting.actors import prompted
from pd_pipeline.acting.environments import LocalBatch, episode_seed
from pd_pipeline.acting.rollouts import Group, Rollouts, rollout
from pd_pipeline.evaluation import episodes, results, stage
from pd_pipeline.evaluation.results import Evaluation
from pd_pipeline.evaluation.scores import method_metrics, tuned_of
from pd_pipeline.families.base import Family
from pd_pipeline.models.saved_policy import load_policy
from pd_pipeline.models.weights import load_weights
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import load_arrays, read_json
from pd_pipeline.tuning import summary
from tests.evaluation.builders import SEED, stage_context

PLAIN = {"workers": 1, "bootstrap": 200}


def context(root: Path, out: Path, *methods: str, **changes: Any) -> StageContext:
    return stage_context(root, out, stage, stage.Params.model_validate(PLAIN | changes), methods)


def alone(given: StageContext, method: str, task: int, episode: int) -> Rollouts:
    """The prompts that a method left for a task, rolled out by themselves."""
    policy, normalization = load_policy(given.inputs["plm"])
    left = given.inputs[f"tuned_{method}"] / str(task)
    if method == "full_finetune":
        load_weights(policy, left / "policy.safetensors", "the PLM")
    prompts = Prompts.load(left / "prompts.safetensors")
    actors, count = prompted(policy, prompts, normalization), len(prompts)
    seeds = [episode_seed(SEED, task, prompt, episode) for prompt in range(count)]
    environments = LocalBatch(given.family, [task] * count, seeds)
    targets = np.full(count, read_json(left / "summary.json")["target_return"])
    return rollout([Group(np.arange(count), actors)], targets, normalization, environments, silent, "")


def test_every_prompt_has_its_own_episode_in_every_round(tuned_project: Path, tmp_path: Path) -> None:
    """Methods, targets and prompts acted together are what each is alone, and every row names what it is of."""
    given = context(tuned_project, tmp_path / "out", "prompt_diffuser", "full_finetune", "prompt_dt", episodes=2)
    returned = stage.run(given)
    scores = pl.read_parquet(given.out / "scores.parquet")
    assert set(scores["seed"]) == {SEED}
    arrays, _ = load_arrays(given.out / "rollouts.safetensors")
    kept = []
    for episode in (0, 1):
        for method, count in (("prompt_diffuser", 4), ("full_finetune", 8), ("prompt_dt", 8)):
            for task in (1, 4):
                rows = scores.filter(pl.col("method") == method, pl.col("task") == task, pl.col("episode") == episode)
                expected = alone(given, method, task, episode)
                assert rows["prompt"].to_list() == list(range(count))
                np.testing.assert_allclose(rows["return"], expected.returns, atol=1e-4)
                assert rows["success"].to_list() == expected.success.tolist()
                assert rows["length"].to_list() == [12] * count
                left = given.inputs[f"tuned_{method}"] / str(task)
                assert set(rows["target_return"]) == {read_json(left / "summary.json")["target_return"]}
                prompts = Prompts.load(left / "prompts.safetensors")
                assert rows["origin_step"].to_list() == prompts.start.tolist()
                drawn = [f"episode {origin}" for origin in prompts.episode_id]
                assert rows["origin"].to_list() == (["generated"] * 4 if method == "prompt_diffuser" else drawn)
                if episode == 0:
                    kept.append(expected)
    assert len(arrays["rows"]) == len(kept) == 6
    assert arrays["rows"].dtype == np.int64
    assert scores[arrays["rows"].tolist()].select("prompt", "episode").unique().rows() == [(0, 0)]
    for name in ("observations", "actions"):
        np.testing.assert_allclose(arrays[name], [getattr(one, name)[0] for one in kept], atol=1e-4)
    outs = {
        method: [tuned_of(summary.load(given.inputs[f"tuned_{method}"] / str(task)), task) for task in (1, 4)]
        for method in ("prompt_diffuser", "full_finetune", "prompt_dt")
    }
    metrics = method_metrics(scores, outs, SEED, 200)
    assert results.load(given.out / "metrics.json") == Evaluation(metrics, "float32", "point_robot", SEED)
    assert returned == {f"return_mean_{method}": result.mean.value for method, result in metrics.items()}
    assert given.facts == {"device": "cpu", "precision": "float32"}


def test_costs_in_the_metrics_are_of_all_targets_of_the_method(tuned_project: Path, tmp_path: Path) -> None:
    given = context(tuned_project, tmp_path / "out", "prompt_diffuser", "full_finetune")
    stage.run(given)
    metrics = results.load(given.out / "metrics.json").methods
    guiding, training = 2 * 8 * 8 + 32 * 12, 2 * 8 * 8
    assert metrics["prompt_diffuser"].costs.plm_passes == 2 * guiding
    assert metrics["full_finetune"].costs.plm_passes == 2 * training


def test_environments_are_made_as_asked_for_and_closed(
    tuned_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Watched(LocalBatch):
        closed = 0

        def close(self) -> None:
            self.closed += 1
            super().close()

    def make(family: Family, block: Any, root: Path, tasks: list[int], seeds: list[int], *rest: Any) -> LocalBatch:
        made.append((Watched(family, tasks, seeds), (block, root), rest))
        return made[-1][0]

    titles: set[str] = set()
    monkeypatch.setattr(episodes, "make_batch", make)
    given = context(tuned_project, tmp_path / "out", "prompt_dt", workers=3, patience=7.5, episodes=2)
    stage.run(replace(given, progress=lambda title, *_: titles.add(title)))
    assert [one[1:] for one in made] == [((given.environment, tuned_project), (3, 7.5))] * 2
    assert [one[0].closed for one in made] == [1, 1]
    assert titles == {"evaluation point_robot-5, 1 of 2", "evaluation point_robot-5, 2 of 2"}
    monkeypatch.setattr(episodes, "rollout", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage.run(context(tuned_project, tmp_path / "again/out", "prompt_dt"))
    assert made[-1][0].closed == 1


def test_a_family_without_success_has_none_in_its_scores(
    tuned_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = context(tuned_project, tmp_path / "out", "prompt_dt")
    monkeypatch.setattr(type(given.family), "has_success", False)
    stage.run(given)
    success = pl.read_parquet(given.out / "scores.parquet")["success"]
    assert (success.null_count(), success.dtype) == (16, pl.Boolean)


def test_the_length_of_an_episode_is_that_of_its_rollout(
    tuned_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "rollout", lambda *given: replace(rollout(*given), lengths=np.arange(16)))
    given = context(tuned_project, tmp_path / "out", "prompt_dt")
    stage.run(given)
    assert pl.read_parquet(given.out / "scores.parquet")["length"].to_list() == list(range(16))


def test_in_parts_it_is_the_same_up_to_rounding(tuned_project: Path, tmp_path: Path) -> None:
    names = ("prompt_diffuser", "prompt_dt")
    whole = context(tuned_project, tmp_path / "whole/out", *names, episodes=2)
    parts = context(tuned_project, tmp_path / "parts/out", *names, episodes=2, targets=1)
    assert stage.run(whole).keys() == stage.run(parts).keys()
    assert {path.name for path in parts.work.iterdir()} == {"part-1", "part-2"}
    one, other = (pl.read_parquet(given.out / "scores.parquet") for given in (whole, parts))
    assert_frame_equal(one, other, rel_tol=1e-4, abs_tol=1e-4)
    kept, again = (load_arrays(given.out / "rollouts.safetensors")[0] for given in (whole, parts))
    assert kept["rows"].tolist() == again["rows"].tolist()
    for name in ("observations", "actions"):
        np.testing.assert_allclose(kept[name], again[name], atol=1e-4)
    assert parts.facts == whole.facts


def test_parts_that_are_done_are_not_done_again(
    tuned_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = context(tuned_project, tmp_path / "out", "prompt_dt", targets=1)
    acted: list[int] = []

    def interrupted(groups: list[Group], *rest: Any) -> Rollouts:
        acted.append(len(groups))
        if len(acted) == 2:
            raise KeyboardInterrupt
        return rollout(groups, *rest)

    monkeypatch.setattr(episodes, "rollout", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage.run(given)
    assert [path.name for path in given.work.iterdir()] == ["part-1"]
    stage.run(given)
    assert len(acted) == 3, "of two parts, one had to be done once more"
    assert pl.read_parquet(given.out / "scores.parquet")["task"].unique().sort().to_list() == [1, 4]


def test_parts_are_computed_where_the_context_has_them_computed(tuned_project: Path, tmp_path: Path) -> None:
    """What other machines get can be pickled, and is all that they need."""
    given = context(tuned_project, tmp_path / "out", "prompt_dt", targets=1)
    seen: list[int] = []

    def spread(work: Any, parts: Sequence[Any]) -> Iterator[Any]:
        for part in reversed(parts):
            seen.append(part.number)
            yield from pickle.loads(pickle.dumps(work))(given, [part])

    here = context(tuned_project, tmp_path / "here/out", "prompt_dt", targets=1)
    assert stage.run(replace(given, spread=spread)) == stage.run(here)
    assert seen == [2, 1]
    for file in ("scores.parquet", "metrics.json", "rollouts.safetensors"):
        assert (given.out / file).read_bytes() == (here.out / file).read_bytes()
    assert given.facts == here.facts


def test_targets_are_split_into_parts() -> None:
    assert [part.targets for part in stage.plan((3, 5, 8, 9, 4), 2)] == [(3, 5), (8, 9), (4,)]
    (only,) = stage.plan((3, 5), 50)
    assert (only.number, only.total, only.targets) == (1, 1, (3, 5))
