"""Every method that others' tests leave out, through the graph: tuned, evaluated, reported, and taken out."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pd_pipeline import graph, load_policy
from pd_pipeline.deployment.writing import FIRST, write_policy
from pd_pipeline.reporting.stage_plots import drawn
from pd_pipeline.stage import Key
from pd_pipeline.storage import read_json
from tests.conftest import run_stages

SETTINGS = {
    "prompt_search": "{episodes: 8, first: 3, population: 3, elites: 2, prompts: 3}",
    "prompt_diffuser_zero_shot": "{chain: 4, share: 0.5, prompts: 3}",
    "prompt_diffuser_online": "{adapt: {steps: 2}, steps: 2, arms: 4, prompts: 3, bandit: {episodes: 6}}",
    "retrieval_prompt": "{windows: 2, prompts: 3}",
    "prompt_tuning_ranking": "{steps: 3, perturbations: 4, windows: 4, prompts: 3}",
    "prompt_tuning_ranking_online": "{steps: 2, perturbations: 3, queries: 1, prompts: 3}",
    "soft_prompt": "{steps: 4, windows: 3, prompts: 3}",
    "prefix": "{steps: 4, windows: 3, prompts: 3}",
    "adapter": "{steps: 4, batch: 4, prompts: 3, bottleneck: 2}",
    "warm_start": "{steps: 2, borrowed: 2, windows: 3, prompts: 3, neighbours: 1}",
    "hyper_adapter": "{steps: 4, batch: 4, prompts: 3}",
    "lora": "{steps: 4, batch: 4, prompts: 3}",
    "nearest_task": "{prompts: 3}",
}
PLOTS: dict[str, list[str]] = {
    "prompt_diffuser_online": ["L_DM and L_DT", "gradients", "best return so far"],
    "prompt_diffuser_zero_shot": [],
    "retrieval_prompt": [],
    "nearest_task": [],
    "prompt_search": ["best return so far"],
    "prompt_tuning_ranking_online": ["mean return"],
}
WITHOUT_DEMONSTRATIONS = ("prompt_search", "prompt_diffuser_zero_shot", "nearest_task")
EPISODES = {"prompt_diffuser_online": 6, "prompt_tuning_ranking_online": 6, "prompt_search": 8}


@pytest.fixture
def root(project: Path) -> Path:
    """The trained project with these methods, tuned and evaluated."""
    text = (project / "params.yaml").read_text()
    text = text.replace("{steps: 80,", "{conditions: [task], steps: 80,")  # nearest_task reads its numbers
    text = re.sub(r"^  methods: .*$", f"  methods: [{', '.join(SETTINGS)}]", text, count=1, flags=re.MULTILINE)
    for name, block in SETTINGS.items():
        text += f"    tuned_{name}: {block}\n"
    text += "    hyper_network: {steps: 4, warmup: 1, tasks: 2, batch: 3, segments: 4, width: 8, bottleneck: 2}\n"
    (project / "params.yaml").write_text(text)
    found = graph.load(project)
    tuned = (stage for stage in found.stages if stage.startswith("tuned_"))
    run_stages(project, "diffuser", "hyper_network", *tuned, "evaluation", "report")
    return project


def test_they_are_compared_and_can_be_taken_out(root: Path, tmp_path: Path) -> None:
    assert "prompt_fit" not in graph.load(root).stages, "no diffuser is tuned without episodes"
    metrics = read_json(root / "data/evaluation/point_robot-0/metrics.json")["methods"]
    assert metrics.keys() == SETTINGS.keys()
    assert read_json(root / "data/hyper_network/point_robot-0/config.json")["adapters"] == 4
    page = (root / "data/reports/index.html").read_text()
    assert "Hyper-network" in page
    scores = pl.read_parquet(root / "data/evaluation/point_robot-0/scores.parquet")
    for name in SETTINGS:
        assert f'<tr data-method="{name}"' in page
        summary = read_json(root / f"data/tuned_{name}/point_robot-0/4/summary.json")
        assert summary["environment_episodes"] == EPISODES.get(name, 0)
        assert (summary["few_shot"] == 0) == (name in WITHOUT_DEMONSTRATIONS)
        logs = drawn("pd_pipeline.reporting.stage_plots:tuning", root / f"data/tuned_{name}/point_robot-0/4")
        assert list(logs) == PLOTS.get(name, ["loss"])
        folder = tmp_path / name
        about = write_policy(graph.load(root), name, Key("point_robot", 4, 0), folder)
        policy = load_policy(folder)
        policy.reset()
        assert np.isfinite(policy.act(np.zeros(2, np.float32))).all()
        expected = scores.filter(pl.col("method") == name, pl.col("task") == 4)
        assert expected.height == 3
        if name == "prompt_search":  # the first of all: the report draws no trajectories that it was given
            assert (about.actor, about.chosen_by) == (0, FIRST)
            assert summary["few_shot_episodes"] == summary["prompt_episodes"] == summary["shown_episodes"] == []
