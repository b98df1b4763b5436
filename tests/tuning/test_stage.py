"""The stages tuned_<method>: what a method is given and what is recorded, unchanged by a kill."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pd_pipeline import graph
from pd_pipeline.acting.actors import prompted
from pd_pipeline.acting.environments import LocalBatch, episode_seed
from pd_pipeline.acting.rollouts import Group, rollout
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer
from pd_pipeline.models.saved_diffuser import load_diffuser
from pd_pipeline.models.saved_policy import load_policy
from pd_pipeline.models.weights import load_weights
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Prompts, cut
from pd_pipeline.stage import Key, StageContext
from pd_pipeline.storage import digest, read_json
from pd_pipeline.trajectories.reading import Trajectories, read
from pd_pipeline.tuning import stage
from pd_pipeline.tuning.adaptation import load
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from tests.conftest import run_stages
from tests.training.test_stages import kill_at, set_params
from tests.tuning.tiny import models, same_prompts, same_weights

TASKS = (1, 4)
EXACT = {"precision": "float32"}
SMALL: dict[str, dict[str, Any]] = {
    "prompt_dt": {},
    "prompt_diffuser": {"steps": 2, "batch": 4, "adapt": None, "chain": 3, "candidates": 9, **EXACT},
    "prompt_gradient": {"steps": 2, "windows": 4, **EXACT},
    "full_finetune": {"steps": 2, "batch": 4, **EXACT},
    "noise_prompt": {},
    "no_prompt": {},
}


def context(root: Path, out: Path, method: str, task: int = 4, seed: int = 0, **changes: Any) -> StageContext:
    """A stage of the trained project, with its own folder for outputs."""
    project = graph.load(root)
    module = importlib.import_module(f"pd_pipeline.tuning.{method}")
    run = project.params.run.model_copy(update={"variants": {"named_otherwise": method}})
    out.mkdir(parents=True)
    return StageContext(
        root=root,
        stage="tuned_named_otherwise",  # like a variant
        key=Key("point_robot", task, seed),
        params=module.Params.model_validate(SMALL[method] | changes),
        module=module.__name__,
        modules=project.modules,
        environment=project.params.block("point_robot", "environment"),
        inputs={
            "target_data": root / f"data/target_data/point_robot/{task}",
            "plm": root / "data/plm/point_robot-0",
            "diffuser": root / "data/diffuser/point_robot-0",
        },
        out=out,
        work=out.parent / f"{out.name}-work",
        logs=out.parent / f"{out.name}-logs",
        progress=silent,
        params_file=project.params.model_copy(update={"run": run}),
    )


def made(root: Path, out: Path, method: str, **changes: Any) -> tuple[Prompts, dict[str, Any]]:
    """Run a method's stage; returns the prompts and the summary it writes."""
    stage.run(context(root, out, method, **changes))
    return Prompts.load(out / "prompts.safetensors"), read_json(out / "summary.json")


def trajectories(root: Path, task: int, quality: str = "expert") -> Trajectories:
    return read(root / f"data/trajectories/point_robot/{quality}.parquet", [task])


def few_shot(root: Path, task: int, count: int, seed: int = 0, quality: str = "expert") -> Trajectories:
    """The few-shot draw, recomputed."""
    data = trajectories(root, task, quality)
    order = np.random.default_rng([seed, task]).permutation(len(data.task_id))
    return data.select(np.sort(order[:count]))


@pytest.mark.parametrize("method", SMALL)
def test_contents_of_the_summary(method: str, trained_project: Path, tmp_path: Path) -> None:
    prompts, summary = made(trained_project, tmp_path / "out", method, target={"few_shot": 3})
    drawn = few_shot(trained_project, 4, 3)
    policy, _ = load_policy(trained_project / "data/plm/point_robot-0")
    denoiser, _ = load_diffuser(trained_project / "data/diffuser/point_robot-0")
    sizes = {"full_finetune": policy, "prompt_diffuser": denoiser}
    tuned = {name: sum(p.numel() for p in model.parameters()) for name, model in sizes.items()}
    ways = {"prompt_gradient": 8 * 4 * 2, "full_finetune": 4 * 2, "prompt_diffuser": 4 * 2}
    passes = {name: (each + 32 * 9 * (name == "prompt_diffuser"), each) for name, each in ways.items()}
    assert summary == {
        "method": method,
        "frozen": method != "full_finetune",
        "quality": "expert",
        "few_shot": 3,
        "few_shot_episodes": drawn.episode_id.tolist(),
        "choose": "random",
        "prompt_quality": "expert",
        "prompt_episodes": drawn.episode_id.tolist(),
        "shown_task": 4,
        "shown_episodes": drawn.episode_id.tolist(),
        "target_return": pytest.approx(drawn.rewards.astype(float).sum() / 3, rel=1e-6),
        "candidates": 9 if method == "prompt_diffuser" else None,
        "chain": 3 if method == "prompt_diffuser" else None,
        "tuned_parameters": (tuned | {"prompt_gradient": 3 * 4}).get(method, 0),
        "plm_forward": passes.get(method, (0, 0))[0],
        "plm_backward": passes.get(method, (0, 0))[1],
        "environment_episodes": 0,
        "fell_back": False,
    }
    assert len(prompts) == 8
    assert (prompts.task_id == 4).all()
    left = {"full_finetune": ["policy"], "prompt_diffuser": ["adapted", "guided"]}.get(method, [])
    log = ["log.csv"] if method in ("full_finetune", "prompt_diffuser", "prompt_gradient") else []
    arrays = [f"{name}.safetensors" for name in (*left, "prompts")]
    generator = ["generator.json"] if method == "prompt_diffuser" else []
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == sorted([*arrays, *log, *generator, "summary.json"])


@pytest.mark.parametrize("method", SMALL)
def test_the_saved_files_are_what_the_method_made(method: str, trained_project: Path, tmp_path: Path) -> None:
    """Its prompts, weights and log, from a seed that differs by task."""
    given = context(trained_project, tmp_path / "out", method, task=1, seed=3, target={"few_shot": 3})
    stage.run(given)
    policy, normalization = load_policy(trained_project / "data/plm/point_robot-0")
    diffuser = load_diffuser(trained_project / "data/diffuser/point_robot-0")
    plm = Pretrained(policy, normalization, torch.device("cpu"), diffuser)
    seed = int(np.random.SeedSequence([3, 1]).generate_state(1)[0])
    drawn = Target.of(few_shot(trained_project, 1, 3, seed=3), plm)
    run = Run(tmp_path / "work", tmp_path / "logs", "", silent, seed)
    expected = importlib.import_module(f"pd_pipeline.tuning.{method}").tune(plm, drawn, given.params, run)
    found = load(f"pd_pipeline.tuning.{method}", given.out, plm)
    same_prompts(found.prompts, expected.prompts)
    assert found.frozen == expected.frozen
    assert models(found).keys() == models(expected).keys()
    for name, model in models(expected).items():
        same_weights(models(found)[name], model)
    if expected.history.rows:
        rows = pl.read_csv(given.out / "log.csv").to_dicts()
        assert [{k: v for k, v in row.items() if v is not None} for row in rows] == expected.history.rows


def test_quality_selects_the_trajectories(trained_project: Path, tmp_path: Path) -> None:
    """Prompts, few-shot episodes and the target return come from its file."""
    found = {}
    for quality in ("expert", "random"):
        drawn = few_shot(trained_project, 4, 2, quality=quality)
        prompts, summary = made(
            trained_project, tmp_path / quality, "prompt_dt", target={"few_shot": 2, "quality": quality}
        )
        real = cut(drawn, 3)
        rows = [real.x0[(real.episode_id == e) & (real.start == s)][0] for e, s in origins(prompts)]
        np.testing.assert_array_equal(prompts.x0, rows)
        assert summary["quality"] == quality
        assert summary["target_return"] == float(drawn.episode_returns.mean())
        found[quality] = summary["target_return"]
    assert found["expert"] > found["random"] + 1


@pytest.mark.parametrize("method", ["prompt_dt", "prompt_gradient", "prompt_diffuser"])
def test_prompts_can_be_of_another_quality_than_the_windows(
    method: str, trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Target] = []
    module = importlib.import_module(f"pd_pipeline.tuning.{method}")
    tune = module.tune

    def watched(plm: Pretrained, target: Target, params: Any, run: Any) -> Any:
        seen.append(target)
        return tune(plm, target, params, run)

    monkeypatch.setattr(module, "tune", watched)
    given = {"few_shot": 2, "prompt_quality": "random"}
    _, summary = made(trained_project, tmp_path / "out", method, target=given)
    (target,) = seen
    expert, random = few_shot(trained_project, 4, 2), few_shot(trained_project, 4, 2, quality="random")
    np.testing.assert_array_equal(target.data.observations, expert.observations)
    np.testing.assert_array_equal(target.prompts.x0, cut(random, 3).x0)
    assert (summary["quality"], summary["prompt_quality"]) == ("expert", "random")
    assert (summary["few_shot_episodes"], summary["prompt_episodes"]) == (
        expert.episode_id.tolist(),
        random.episode_id.tolist(),
    )
    assert target.target_return == summary["target_return"] == float(expert.episode_returns.mean())


def test_the_return_asked_for_can_be_set(trained_project: Path, tmp_path: Path) -> None:
    _, summary = made(trained_project, tmp_path / "out", "prompt_dt", target={"few_shot": 2, "target_return": -3.5})
    assert summary["target_return"] == -3.5


def origins(prompts: Prompts) -> list[tuple[int, int]]:
    return list(zip(prompts.episode_id.tolist(), prompts.start.tolist(), strict=True))


@pytest.mark.parametrize("method", [name for name in SMALL if name != "no_prompt"])
def test_another_tasks_trajectories_can_be_shown(method: str, trained_project: Path, tmp_path: Path) -> None:
    """The target return stays the target's own; prompts are drawn as for the other target."""
    _, own = made(trained_project, tmp_path / "own", method, target={"few_shot": 3})
    prompts, other = made(trained_project, tmp_path / "other", method, target={"few_shot": 3}, shown="other")
    drawn = few_shot(trained_project, 1, 3)
    assert (prompts.task_id == 1).all()
    assert (other["shown_task"], other["shown_episodes"]) == (1, drawn.episode_id.tolist())
    assert drawn.episode_id.tolist() != own["few_shot_episodes"]
    for name in ("target_return", "few_shot", "few_shot_episodes", "plm_forward", "method"):
        assert other[name] == own[name]
    conditions = {row.tobytes() for row in np.round(cut(drawn, 3).y, 3)}
    assert {row.tobytes() for row in np.round(prompts.y, 3)} <= conditions


@pytest.mark.parametrize(
    ("method", "changes", "precision"),
    [
        ("prompt_dt", {}, "float32"),
        ("no_prompt", {}, "float32"),
        ("prompt_gradient", {}, "float32"),
        ("prompt_gradient", {"precision": "bf16"}, "bf16"),
    ],
)
def test_the_record_names_device_and_precision(
    method: str, changes: dict[str, Any], precision: str, trained_project: Path, tmp_path: Path
) -> None:
    given = context(trained_project, tmp_path / "out", method, **changes)
    figures, summary = stage.run(given), read_json(given.out / "summary.json")
    assert figures == {
        "tuned_parameters": summary["tuned_parameters"],
        "plm_passes": summary["plm_forward"] + summary["plm_backward"],
    }
    assert given.facts == {"device": "cpu", "precision": precision}


def test_a_file_of_another_family_is_refused(project: Path, tmp_path: Path) -> None:
    set_params(project, "horizon: 12, tasks: 6", "horizon: 13, tasks: 6")
    with pytest.raises(PipelineError, match="horizon"):
        made(project, tmp_path / "out", "prompt_dt")


def scored(root: Path, method: str, task: int) -> np.ndarray:
    scores = pl.read_parquet(root / "data/evaluation/point_robot-0/scores.parquet")
    return scores.filter(pl.col("method") == method, pl.col("task") == task).sort("prompt")["return"].to_numpy()


def rolled(root: Path, method: str, task: int, policy: PromptingDecisionTransformer) -> np.ndarray:
    """Returns of a method's prompts with `policy`, recomputed."""
    prompts = Prompts.load(out(root, method, task) / "prompts.safetensors")
    family = graph.load(root).family("point_robot")
    _, normalization = load_policy(root / "data/plm/point_robot-0")
    count = len(prompts)
    environments = LocalBatch(family, [task] * count, [episode_seed(0, task, i) for i in range(count)])
    targets = np.full(count, read_json(out(root, method, task) / "summary.json")["target_return"])
    group = Group(np.arange(count), prompted(policy, prompts, normalization))
    return rollout([group], targets, normalization, environments, silent, "").returns


def test_full_finetune_is_evaluated_with_its_own_weights_and_no_prompt_without_prompts(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(
        "run: {families: [point_robot], seeds: [0], methods: [full_finetune, no_prompt]}\n"
        + text[text.index("families:\n  point_robot") :]
        .replace("    tuned_no_prompt: {}\n", "")
        .replace("tuned_full_finetune: {", "tuned_no_prompt: {}\n    tuned_full_finetune: {learning_rate: 0.05, ")
    )
    run_stages(project, "tuned_full_finetune", "tuned_no_prompt", "evaluation")
    for task in TASKS:
        frozen, _ = load_policy(project / "data/plm/point_robot-0")
        tuned, _ = load_policy(project / "data/plm/point_robot-0")
        load_weights(tuned, out(project, "full_finetune", task) / "policy.safetensors", "the PLM")
        found = scored(project, "full_finetune", task)
        np.testing.assert_allclose(found, rolled(project, "full_finetune", task, tuned), atol=1e-4)
        assert (np.abs(found - rolled(project, "full_finetune", task, frozen)) > 1e-2).all()
        np.testing.assert_allclose(
            scored(project, "no_prompt", task), rolled(project, "no_prompt", task, frozen), atol=1e-4
        )


def out(root: Path, method: str, task: int) -> Path:
    return root / f"data/tuned_{method}/point_robot-0/{task}"


def test_all_methods_of_a_seed_get_the_same_few_shot_trajectories(tuned_project: Path) -> None:
    for task in TASKS:
        summaries = [read_json(out(tuned_project, method, task) / "summary.json") for method in SMALL]
        drawn = few_shot(tuned_project, task, 5)
        for summary in summaries:
            assert summary["few_shot_episodes"] == summary["shown_episodes"] == drawn.episode_id.tolist()
            assert summary["target_return"] == float(drawn.episode_returns.mean())


def test_columns_of_the_guidance_log(tuned_project: Path) -> None:
    log = pl.read_csv(out(tuned_project, "prompt_diffuser", 4) / "log.csv")
    guided = log.filter(pl.col("phase") == 2)
    assert guided["step"].to_list() == list(range(1, 9))
    for name in ("l_dm", "l_dt", "cosine", "norm_ratio", "projected"):
        assert guided[name].null_count() == 0


def test_tuning_does_not_change_the_pretrained_models(tuned_project: Path, trained_project: Path) -> None:
    assert digest(tuned_project / "data/plm") == digest(trained_project / "data/plm")
    assert digest(tuned_project / "data/diffuser") == digest(trained_project / "data/diffuser")


def test_prompt_diffuser_killed_while_guiding_writes_the_same_bytes(tuned_project: Path, project: Path) -> None:
    old, new = "tuned_prompt_diffuser: {adapt: {", "checkpoint_seconds: 0, "
    set_params(project, old, f"tuned_prompt_diffuser: {{{new}adapt: {{{new}")
    kill_at(project, "tuned_prompt_diffuser", "point_robot-4-0", step=3, folder="guide")
    assert not out(project, "prompt_diffuser", 4).exists()
    run_stages(project, "tuned_prompt_diffuser")
    for task in TASKS:
        assert digest(out(project, "prompt_diffuser", task)) == digest(out(tuned_project, "prompt_diffuser", task))
