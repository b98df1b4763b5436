"""DVC's own commands: metrics, plots and experiments on a project in git."""

import json
from pathlib import Path

import pytest

from tests.dvc_project import call, dvc, git

PARAMS = """\
run: {families: [point_robot], seeds: [0], methods: [prompt_dt, noise_prompt]}
machine: {device: cpu}
families:
  point_robot:
    environment: {horizon: 6, tasks: 4, test_tasks: [1, 3]}
    trajectories: {workers: 1, episodes: {expert: {train: 3, test: 6}}}
    prompts: {length: 3, stride: 1}
    plm: {steps: 4, batch_per_task: 2, width: 8, layers: 1, context: 4}
    tuned_noise_prompt: {prompts: 4}
    evaluation: {workers: 1, bootstrap: 50}
"""


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete project in git, with dvc.yaml, dvc.lock and params.yaml committed."""
    root = tmp_path_factory.mktemp("experiments") / "project"
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS)
    (root / ".gitignore").write_text("/data/*\n/.work/\n/digests.json\n")
    git(root, "init", "-q")
    call(root, "dvc", "init", "-q")
    call(root, "pd-pipeline", "run", "all")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "made")
    return root


def test_metrics_plots_and_experiments(committed: Path) -> None:
    assert git(committed, "status", "--short") == "", "all other files are ignored"
    shown = json.loads(call(committed, "dvc", "metrics", "show", "--json"))[""]["data"]
    of_method = shown["data/reports/metrics.json"]["data"]["point_robot"]
    metrics = json.loads((committed / "data/evaluation/point_robot-0/metrics.json").read_text())["methods"]
    assert of_method.keys() == metrics.keys()
    assert of_method["prompt_dt"]["return_mean"] == pytest.approx(metrics["prompt_dt"]["return_mean"])
    assert of_method["prompt_dt"].keys() == {"return_mean", "success_rate"}, "unknown metrics are left out"
    plots = json.loads(call(committed, "dvc", "plots", "show", "--json"))["data"]
    assert list(plots) == ["plm losses"]
    output = call(committed, "dvc", "exp", "run", "-S", "families.point_robot.tuned_noise_prompt.prompts=5")
    assert "Running stage 'tuned_noise_prompt@point_robot-1-0'" in output
    assert "Running stage 'tuned_prompt_dt" not in output
    assert "Running stage 'plm" not in output
    assert "dvc.lock" in git(committed, "status", "--short")
    changed = json.loads(call(committed, "dvc", "metrics", "diff", "--json"))["data/reports/metrics.json"]
    assert {name.split(".")[1] for name in changed} <= {"noise_prompt"}
    experiments = call(committed, "dvc", "exp", "show", "--csv")
    assert "families.point_robot.tuned_noise_prompt.prompts" in experiments.splitlines()[0]
    assert dvc(committed, "status").startswith("Data and pipelines are up to date")
