"""Stage behavior_policies: trained, or copied from an earlier training."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from pd_pipeline import graph
from pd_pipeline.behavior.policies import Params
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import load_family
from pd_pipeline.families.goal_policy import located
from pd_pipeline.parsing import parse
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest, read_json
from pd_pipeline.trajectories.collection import Pool, Shard, collect_episodes

ROOT = Path(__file__).parents[2]
LEARNING = "{lanes: 4, steps: 80, batch: 20, epochs: 1, width: 8, workers: 1}"
FILES = ("expert.safetensors", "medium.safetensors", "random.safetensors")


def made(root: Path, block: str, family: str = "cheetah_vel") -> tuple[Path, dict[str, Any]]:
    """The out of the stage and its metrics."""
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(
        f"run: {{families: [{family}], methods: [prompt_dt]}}\n"
        f"families:\n  {family}:\n    environment: {{horizon: 10}}\n    behavior_policies: {block}\n"
    )
    project = graph.load(root)
    metrics = run_piece(project, "behavior_policies", Key(family), silent)
    return root / project.out("behavior_policies", Key(family)), metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, metrics = made(tmp_path_factory.mktemp("trained"), f"{{learning: {LEARNING}}}")
    assert metrics["return_mean"] < 0
    return out


def test_training_writes_checkpoints_descriptions_and_its_curve(trained: Path) -> None:
    names = {file.name for file in trained.iterdir()}
    assert names == {*FILES, "policies.json", "learning.csv"}
    policies = read_json(trained / "policies.json")
    assert policies["medium"] == {"weights": "medium.safetensors", "noise": 1.0}
    assert (trained / "learning.csv").read_text().startswith("steps,return_mean,length_mean,early_ends\n40,")


def test_checkpoints_of_an_earlier_training_can_be_used(trained: Path, tmp_path: Path) -> None:
    wanted = digest(*(trained / name for name in FILES))
    out, _ = made(tmp_path / "p", f'{{trained: {{folder: "{trained}", digest: {wanted}}}}}')
    for name in FILES:
        assert (out / name).read_bytes() == (trained / name).read_bytes()
    assert not (out / "learning.csv").exists()


def test_checkpoints_with_another_digest_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"behavior_policies\.trained\.digest: 12ab, but the checkpoints in .* have"
    ):
        made(tmp_path / "p", f'{{trained: {{folder: "{trained}", digest: 12ab}}}}')
    assert not (tmp_path / "p/data/behavior_policies/cheetah_vel").exists()


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"trained\.folder: .*nowhere lacks expert\.safetensors, medium"):
        made(tmp_path / "p", "{trained: {folder: nowhere, digest: 12ab}}")


def test_checkpoints_of_another_family_are_refused(trained: Path, tmp_path: Path) -> None:
    wanted = digest(*(trained / name for name in FILES))
    with pytest.raises(PipelineError, match="made for 18 inputs and 6 actions, but the family has 29 and 8"):
        made(tmp_path / "p", f'{{trained: {{folder: "{trained}", digest: {wanted}}}}}', "ant_dir")


PUBLISHED = YAML(typ="safe").load((ROOT / "published/params.yaml").read_text())["families"]
SHIPPED = [
    (name, blocks["behavior_policies"]["trained"]["digest"])
    for name, blocks in PUBLISHED.items()
    if "trained" in blocks["behavior_policies"]
]


def test_the_published_benchmark_names_every_shipped_policy() -> None:
    named = {name: PUBLISHED[name]["behavior_policies"]["trained"]["folder"] for name, _ in SHIPPED}
    assert named == {path.name: f"policies/{path.name}" for path in (ROOT / "published/policies").iterdir()}


@pytest.mark.parametrize(("family", "wanted"), SHIPPED)
def test_shipped_policies_are_ordered_by_quality(family: str, wanted: str, tmp_path: Path) -> None:
    block = f'{{trained: {{folder: "{ROOT / "published/policies" / family}", digest: {wanted}}}}}'
    out, _ = made(tmp_path / "p", block, family)
    locomotion = load_family(family, {"horizon": 100}, tmp_path)
    pool = Pool(locomotion)
    means, ends = {}, {}
    for quality, description in read_json(out / "policies.json").items():
        episodes = [
            collect_episodes(pool, located(description, out), Shard(quality, task, 0, 6), seed=0)
            for task in locomotion.train_tasks[-5:]
        ]
        starts = [np.flatnonzero(data["step"] == 0) for data in episodes]
        means[quality] = np.mean([d["return_to_go"][at].mean() for d, at in zip(episodes, starts, strict=True)])
        ends[quality] = np.mean([d["terminated"].sum() / len(at) for d, at in zip(episodes, starts, strict=True)])
    assert means["random"] < means["medium"] < means["expert"], means
    assert ends["expert"] < 0.1, "the data's own bar, 5 % of whole episodes, holds on more of them"


def test_values_of_a_description_are_plain() -> None:
    for wrong in (float("inf"), date(2026, 1, 1)):
        with pytest.raises(
            PipelineError, match=r"^here\.levels\.expert: .*: write a date in quotes, and a large number"
        ):
            parse(Params, {"levels": {"expert": {"gain": wrong}}}, "here")
