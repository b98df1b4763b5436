"""docs/remote.md, from top to bottom: push to a folder or a bucket, pull elsewhere, evaluate without training."""

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pd_pipeline import graph, lineage
from pd_pipeline.progress import silent
from pd_pipeline.storage import digest
from pd_pipeline.trajectories.reading import write
from tests import s3
from tests.builders import columns, metadata
from tests.docs.pages import ROOT
from tests.dvc_project import ENVIRONMENT, call, git, invoke, start

pytestmark = pytest.mark.xdist_group("remote")  # one project for both
PAGE = ROOT / "docs/remote.md"
PARAMS = """\
run: {families: [point_robot], seeds: [0], methods: [prompt_dt, prompt_diffuser]}
machine: {device: cpu}
promotion: {method: prompt_dt}
families:
  point_robot:
    environment: {horizon: 6, tasks: 4, test_tasks: [1, 3]}
    trajectories: {workers: 1, episodes: {expert: {train: 3, test: 6}}}
    prompts: {length: 3, stride: 1}
    plm: {steps: 4, batch_per_task: 2, width: 8, layers: 1, context: 4}
    diffuser: {steps: 4, batch: 8, diffusion: {steps: 4}, denoiser: {width: 8, blocks: 1}}
    tuned_prompt_diffuser: {adapt: {steps: 2}, steps: 2, batch: 4, candidates: 4, chain: 2, prompts: 2}
    evaluation: {workers: 1, bootstrap: 50}
    prompt_fit: {prompts: 4}
"""
ACCEPTED = {
    "observation_size": 2,
    "action_low": (-1.0, -1.0),
    "action_high": (1.0, 1.0),
    "horizon": 6,
    "goals": {3: {}},
}
FOLDER, BUCKET, ELSEWHERE, OWN = "A folder", "A bucket", "On another machine", "What no stage made"


def commands(section: str) -> list[list[str]]:
    """The commands of a section of the page, without what installs packages."""
    found = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, section
    lines = re.findall(r"^    ((?:dvc|git|pd-pipeline) .*)$", found[1], flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


def follow(root: Path, section: list[list[str]], replaced: Mapping[str, str]) -> str:
    """Run commands of the page with other values; returns what they print."""
    return "".join(call(root, *(replaced.get(word, word) for word in command)) for command in section)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete project in git, with an accepted file and a policy in use: tests must not write to it."""
    root = tmp_path_factory.mktemp("remote") / "project"
    root.mkdir()
    git(root, "init", "-q")
    git(root, "config", "user.name", "Ada")
    git(root, "config", "user.email", "ada@example.org")
    call(root, "pd-pipeline", "init")
    (root / "params.yaml").write_text(PARAMS)
    write(root / "data/incoming/point_robot/3/a.parquet", metadata(**ACCEPTED), [columns(tasks=(3,), d_s=2)])
    call(root, "pd-pipeline", "ingest", "--settle", "0", "--no-work")
    project = graph.load(root)
    for stage in project.stages:
        for key in project.keys(stage) if stage != "report" else []:
            lineage.run(project, stage, key, silent)
    invoke(root, "promote", "point_robot-3")
    invoke(root, "run", "report")  # it shows which policies are in use
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "made")
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "project"))


def cloned(project: Path) -> Path:
    """A clone, as on another machine: nothing that git ignores."""
    (first, *_) = commands(ELSEWHERE)
    follow(project.parent, [first], {"git@example.org:robots.git": str(project)})
    clone = project.parent / "robots"
    assert not (clone / "data/plm").exists()
    assert not (clone / ".dvc/cache").exists()
    return clone


def the_rest_of_the_page_works(project: Path) -> None:
    """From the clone on, whatever the remote is."""
    *sharing, pulling = commands(OWN)
    follow(project, sharing, {})
    clone = cloned(project)
    follow(clone, [pulling], {})
    _, pull, run, status, everything, names_nothing = commands(ELSEWHERE)
    printed = follow(clone, [pull, run], {})
    assert "evaluation point_robot-0: return_mean_prompt_dt" in printed
    assert sorted(path.name for path in (clone / "data/records").iterdir()) == ["evaluation"], "nothing was trained"
    assert not (clone / "data/trajectories").exists(), "and nothing else was needed"
    assert digest(clone / "data/evaluation") == digest(project / "data/evaluation")
    assert "nothing to commit, working tree clean" in follow(clone, [status], {}), "dvc.lock has the same scores"
    follow(clone, [everything], {})
    assert follow(clone, [names_nothing], {}).strip() == "Data and pipelines are up to date."
    assert sorted(path.name for path in (clone / "data/records").iterdir()) == ["evaluation"]
    for folder in ("plm", "diffuser", "tuned_prompt_diffuser", "reports", "ingested", "promoted"):
        assert digest(clone / "data" / folder) == digest(project / "data" / folder), folder
    lineage = call(clone, "pd-pipeline", "lineage", "point_robot-3", "--check").splitlines()
    assert lineage[-1] == "the policy's files are those that were written; upstream: 8 the same files"
    assert any("data/ingested/point_robot/3/0001-expert.parquet, accepted" in line for line in lineage)


def test_a_folder(project: Path, tmp_path: Path) -> None:
    follow(project, commands(FOLDER), {"/mnt/shared/storage": str(tmp_path / "storage")})
    assert (tmp_path / "storage/files/md5").is_dir()
    the_rest_of_the_page_works(project)
    new = project / "data/ingested/point_robot/3/0002-expert.parquet"
    new.write_bytes(b"accepted since, and not added yet")
    for command in ("checkout", "pull"):
        process = start(project, "dvc", command)
        output, _ = process.communicate()
        assert process.returncode != 0
        assert (
            f"Can't remove the following unsaved files without confirmation. Use `--force` to force.\n{new}" in output
        )
        assert new.is_file()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server on this machine with the bucket `robots`."""
    for name in [name for name in ENVIRONMENT if name.startswith("AWS_")]:
        monkeypatch.delitem(ENVIRONMENT, name)
    for name, value in s3.NOWHERE.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    with s3.serving("robots") as address:
        yield address


def test_a_bucket(project: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"https://storage.example.org": endpoint, "YOUR_KEY": "key", "YOUR_SECRET": s3.SECRET}
    follow(project, commands(BUCKET), given)
    assert s3.SECRET in (project / ".dvc/config.local").read_text()
    assert not [name for name in git(project, "ls-files").splitlines() if s3.SECRET in (project / name).read_text()]
    without = start(cloned(project), "dvc", "pull", "plm")
    output, _ = without.communicate()
    assert without.returncode != 0
    assert "credentials" in output
    shutil.rmtree(project.parent / "robots")
    monkeypatch.setitem(ENVIRONMENT, "AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setitem(ENVIRONMENT, "AWS_SECRET_ACCESS_KEY", s3.SECRET)
    the_rest_of_the_page_works(project)
