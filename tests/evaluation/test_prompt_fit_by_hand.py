"""The stage prompt_fit under a seed of its own, computed a second time."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.evaluation import prompt_fit
from pd_pipeline.evaluation.fit import compare
from pd_pipeline.models.diffuser import generate
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.models.saved_diffuser import load_diffuser
from pd_pipeline.models.saved_policy import load_policy
from pd_pipeline.models.weights import load_weights
from pd_pipeline.prompts.segments import Prompts, cut
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import read_json, write_json
from pd_pipeline.trajectories.reading import read
from pd_pipeline.tuning.protocol import Pretrained, Target, prompt_losses
from tests.evaluation.builders import SEED, stage_context


def context(root: Path, out: Path, *methods: str, **changes: Any) -> StageContext:
    params = prompt_fit.Params.model_validate(changes)
    return stage_context(root, out, prompt_fit, params, methods, shared=("trajectories", "target_data", "prompts"))


def episodes_of(prompts: Prompts) -> np.ndarray:
    """(n, 3): all are of one file."""
    return np.stack((prompts.task_id, np.zeros(len(prompts), int), prompts.episode_id), axis=1)


def fit_by_hand(given: StageContext, held_out: Prompts, most: int, unseen_prompts: dict[str, int]) -> dict[str, Any]:
    """`fit.json` with held-out prompts of training tasks, and so many unseen prompts of each target."""
    policy, normalization = load_policy(given.inputs["plm"])
    denoiser, diffusion = load_diffuser(given.inputs["diffuser"])
    plm = Pretrained(policy, normalization, torch.device("cpu"))
    rng = np.random.default_rng(SEED)
    x0, y = prompt_tensors(held_out, normalization)
    made, _ = generate(denoiser, diffusion, y, min(most, len(y) // 2), 8, SEED)
    pretrained = compare(x0.numpy(), episodes_of(held_out), made.numpy(), rng)
    found: dict[str, Any] = {"pretrained": pretrained | {"chain": 8}, "targets": {}}
    for task, total in unseen_prompts.items():
        left = given.inputs["tuned_prompt_diffuser"] / task
        summary = read_json(left / "summary.json")
        chain = read_json(left / "generator.json")["chain"]
        data = read(given.inputs["trajectories"] / f"{summary['prompt_quality']}.parquet", [int(task)])
        others = [i for i, episode in enumerate(data.episode_id) if episode not in summary["prompt_episodes"]]
        unseen = Target.of(data.select(np.array(others)), plm)
        prompts = cut(data.select(np.array(others)), 3)
        x0, y = prompt_tensors(prompts, normalization)
        own = [i for i, episode in enumerate(data.episode_id) if episode in summary["prompt_episodes"]]
        given_x0, given_y = prompt_tensors(cut(data.select(np.array(own)), 3), normalization)
        assert len(y) == total
        count = min(most, total // 2)
        found["targets"][task] = {}
        for name in ("adapted", "guided"):
            load_weights(denoiser, left / f"{name}.safetensors", "the diffuser")
            made, conditions = generate(denoiser, diffusion, y, count, chain, SEED)
            real = rng.choice(len(given_x0), min(len(given_x0), 16), replace=False)
            kept = normalization.normalize(Prompts.load(left / "prompts.safetensors").x0) if name == "guided" else None
            found["targets"][task][name] = compare(x0.numpy(), episodes_of(prompts), made.numpy(), rng, kept) | {
                "chain": min(chain, 8),
                "action_loss_real": float(prompt_losses(plm, unseen, given_x0[real], given_y[real], SEED).mean()),
                "action_loss_generated": float(prompt_losses(plm, unseen, made[:16], conditions[:16], SEED).mean()),
            }
    return found


@pytest.mark.parametrize(("most", "chain"), [(5, 3), (500, 30)])
def test_the_fit_by_hand(most: int, chain: int, tuned_project: Path, tmp_path: Path) -> None:
    """The prompts of task 1 are from random data and from another task, so that what is unseen of it is random too.

    A pool of n prompts is halved to be compared with itself: no more than n / 2 are generated, and the action loss is
    that of 16 of them, and of 16 that the method was given.
    """
    given = context(tuned_project, tmp_path / "out", "prompt_diffuser", prompts=most)
    tuned = tmp_path / "tuned"
    shutil.copytree(given.inputs["tuned_prompt_diffuser"], tuned)
    given.inputs["tuned_prompt_diffuser"] = tuned
    summary = read_json(tuned / "1/summary.json") | {"shown_task": 4, "shown_episodes": [0]}
    write_json(tuned / "1/summary.json", summary | {"prompt_quality": "random", "prompt_episodes": [1]})
    write_json(tuned / "4/summary.json", read_json(tuned / "4/summary.json") | {"prompt_episodes": [0, 3]})
    write_json(tuned / "1/generator.json", {"chain": chain, "names": ["adapted", "guided"]})
    prompt_fit.run(given)
    held_out = Prompts.load(given.inputs["prompts"] / "expert-held_out.safetensors")
    assert len(held_out) == 4 * 10, "an episode of each of four tasks"
    unseen = {"1": 10, "4": 5 * 10}
    found, expected = read_json(given.out / "fit.json"), fit_by_hand(given, held_out, most, unseen)
    for task, parts in found["targets"].items():
        assert 0 < parts["guided"]["prompts"] <= min(most, unseen[task] // 2), "halves of whole episodes differ"
    assert found == expected


def test_the_pretrained_fit_is_of_the_quality_the_diffuser_learned(tuned_project: Path, tmp_path: Path) -> None:
    given = context(tuned_project, tmp_path / "out", prompts=16)
    random = read(given.inputs["trajectories"] / "random.parquet", given.family.train_tasks)
    for name in ("prompts", "diffuser"):
        shutil.copytree(given.inputs[name], tmp_path / name)
        given.inputs[name] = tmp_path / name
    held_out = cut(random, 3, 4)
    held_out.save(tmp_path / "prompts/random-held_out.safetensors")
    config = tmp_path / "diffuser/config.json"
    write_json(config, read_json(config) | {"qualities": ["random"]})
    prompt_fit.run(given)
    assert len(held_out) == 4 * 2 * 3
    assert read_json(given.out / "fit.json") == fit_by_hand(given, held_out, 12, {})
