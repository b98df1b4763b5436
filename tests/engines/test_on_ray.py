"""The pipeline on a Ray cluster: the bytes of a local run, also when a node is lost or the command is interrupted."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from ray.cluster_utils import Cluster as Nodes
from ruamel.yaml import YAML

from pd_pipeline import graph
from pd_pipeline.engines import on_node
from pd_pipeline.engines.engine import ENGINE
from pd_pipeline.engines.on_ray import Cluster, connected, fitting, resources, slots
from pd_pipeline.errors import PipelineError
from pd_pipeline.stage import Key
from pd_pipeline.stages import Resources
from pd_pipeline.storage import digest
from tests import s3
from tests.dvc_project import ENVIRONMENT, SMALL_PARAMS, call, change, make_project, write_graph

pytestmark = pytest.mark.xdist_group("ray")  # one cluster at a time
PLM = "plm", Key("point_robot", None, 0)
PARAMS = (
    SMALL_PARAMS.replace("[point_robot, other]", "[point_robot]")
    .replace("[prompt_dt, noise_prompt]", "[prompt_dt]")
    .replace("plm: {steps: 4,", "plm: {steps: 1200, log_every: 20, checkpoint_seconds: 0.1,")
    .replace("evaluation: {", "evaluation: {targets: 1, ")
)
MACHINE = "{device: cpu, data_root: 's3://robots/outs'}"


@pytest.fixture
def cluster(alone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head that computes nothing, and two nodes of one core."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else other tests on this machine go first
    made = Nodes()
    try:
        for cores in (0, 1, 1):
            add(made, cores)
        yield made
    finally:
        made.shutdown()


def add(cluster: Nodes, cores: int, **environment: str) -> Any:
    memory = 80 << 20
    return cluster.add_node(num_cpus=cores, object_store_memory=memory, include_dashboard=False, env_vars=environment)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What dvc.lock says after a run without a cluster."""
    root = make_project(tmp_path_factory.mktemp("local"), PARAMS)
    call(root, "pd-pipeline", "run", "all")
    return recorded(root)


def start(root: Path, cluster: Nodes, **environment: str) -> subprocess.Popen[str]:
    """`pd-pipeline run all --engine ray`."""
    return subprocess.Popen(
        ["pd-pipeline", "run", "all", "--engine", "ray"],
        cwd=root,
        env=ENVIRONMENT | {"RAY_ADDRESS": cluster.address, "RAY_DEDUP_LOGS": "0"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def recorded(root: Path) -> dict[str, Any]:
    """Address -> its entry in dvc.lock, without the order, and without the digests, which are made from all params."""
    stages: dict[str, Any] = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    return {address: entry for address, entry in stages.items() if address != "digests"}


def until(process: subprocess.Popen[str], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited for two minutes"
        time.sleep(0.02)


def is_under_way(root: Path) -> bool:
    """Whether the PLM's training has saved a state beyond its first hundred steps."""
    saved = (root / ".work/plm").rglob("step-*.safetensors")
    return any(int(path.stem.removeprefix("step-")) > 100 for path in saved)


def first_steps(output: str) -> dict[str, int]:
    """Process that trained the PLM -> the step of its first line."""
    found: dict[str, int] = {}
    for number, done in re.findall(r"\(plm@point_robot-0 pid=(\d+)[^)]*\) plm point_robot-0: ([\d,]+) of", output):
        found.setdefault(number, int(done.replace(",", "")))
    return found


@pytest.mark.timeout(600)
def test_lost_nodes_and_interruptions_change_no_byte(cluster: Nodes, local: dict[str, Any], tmp_path: Path) -> None:
    root = make_project(tmp_path / "shared", PARAMS)

    nodes = [node for node in cluster.list_all_nodes() if node != cluster.head_node]
    process = start(root, cluster)
    until(process, lambda: is_under_way(root))
    add(cluster, 1)
    for node in nodes:  # one of them trains
        cluster.remove_node(node, allow_graceful=False)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert recorded(root) == local
    first, second = first_steps(output).values()
    assert first == 20
    assert second > 100, "the second process went on where the first had been"
    for number in (1, 2):
        assert re.search(rf"\(parts of evaluation@.*\) evaluation point_robot-0, part {number} of 2: 6 of 6", output), (
            output
        )

    shutil.rmtree(root / "data/plm")
    process = start(root, cluster)
    until(process, lambda: is_under_way(root))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "Traceback" not in output
    assert not (root / "data/plm/point_robot-0").exists(), output
    output, _ = (process := start(root, cluster)).communicate()
    assert process.returncode == 0, output
    assert recorded(root) == local
    assert "trajectories point_robot: up to date" in output
    (resumed,) = first_steps(output).values()
    assert resumed > 100

    (root / "data/plm/point_robot-0/notes.txt").write_text("mine")
    change(root, "plm: {steps: 1200", "plm: {steps: 1201")
    output, _ = (process := start(root, cluster)).communicate()
    assert process.returncode == 1
    assert re.search("^error: .*notes.txt", output, re.MULTILINE), output
    assert "Traceback" not in output


def test_dvc_and_dagster_compute_on_the_cluster_that_their_environment_names(
    cluster: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here with a data root as well, though the nodes see the project's own files."""
    from assets.work import do

    (tmp_path / "shared").mkdir()
    root = make_project(tmp_path / "project", PARAMS.replace("{device: cpu}", "{device: cpu, data_root: ../shared}"))
    write_graph(root)
    monkeypatch.setenv(ENGINE, "ray")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    repro = subprocess.run(
        ["dvc", "repro", "trajectories@point_robot"],
        cwd=root,
        env=ENVIRONMENT | {ENGINE: "ray", "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert repro.returncode == 0, repro.stdout + repro.stderr
    assert "(trajectories@point_robot pid=" in repro.stdout + repro.stderr
    pieces = [("prompts", Key("point_robot")), PLM]
    with dg.build_op_context() as context:
        done = list(do(context, graph.load(root), pieces))
        assert [(one.stage, one.key) for one in done] == pieces, "in the order of their needs"
        assert all(one.outcome.metrics and one.data_version for one in done)
        time.sleep(1)  # Ray forwards what tasks print a little later
        assert "(plm@point_robot-0 pid=" in capfd.readouterr().out
        again = list(do(context, graph.load(root), pieces))
        assert all(one.outcome.skipped for one in again)
        assert len([*(tmp_path / "shared/outs").rglob("*.json")]) == len(["behavior_policies", "trajectories", *pieces])
        monkeypatch.setenv(ENGINE, "rey")
        with pytest.raises(dg.Failure, match="PD_PIPELINE_ENGINE: rey: did you mean 'ray'"):
            list(do(context, graph.load(root), pieces))


@pytest.mark.timeout(600)
def test_nodes_that_share_no_file_system_share_a_bucket(alone: None, local: dict[str, Any], tmp_path: Path) -> None:
    """Each has a folder of its own with the project's parameters. What one of them has lost is fetched again.

    The folder of a node that is lost itself is seen by no other one: its work begins anew elsewhere.
    """
    with s3.serving("robots") as address:
        environment = s3.environment(address)
        root = make_project(tmp_path / "project", PARAMS.replace("{device: cpu}", MACHINE))
        cluster, started = Nodes(), dict[Path, Any]()
        try:
            add(cluster, 0)

            def another(name: str) -> None:
                (node := tmp_path / name).mkdir()
                shutil.copy(root / "params.yaml", node)
                own = {on_node.PROJECT: str(node), "RAY_worker_niceness": "0"}
                started[node] = add(cluster, 1, **environment, **own)

            another("first")
            another("second")
            process = start(root, cluster, **environment)
            until(process, lambda: any(is_under_way(node) for node in started))
            (lost,) = (node for node in started if is_under_way(node))
            another("third")
            cluster.remove_node(started.pop(lost), allow_graceful=False)
            output, _ = process.communicate()
            assert process.returncode == 0, output
            assert recorded(root) == local
            assert list(first_steps(output).values())[-1] == 20, "another process began anew"
            nodes = [*started]
            outs = [{path.parent.name for path in node.glob("data/*/*")} for node in nodes]
            assert "evaluation" in outs[0] ^ outs[1], "one of the nodes made it"
            assert "reports" not in outs[0] | outs[1], "made where everything is"
            for number in (1, 2):
                assert f"evaluation point_robot-0, part {number} of 2" in output

            for folder in (root / "data/evaluation", *(node / "data/plm" for node in nodes)):
                shutil.rmtree(folder)
            change(root, "bootstrap: 50", "bootstrap: 60")
            for node in nodes:
                shutil.copy(root / "params.yaml", node)
            output, _ = (process := start(root, cluster, **environment)).communicate()
            assert process.returncode == 0, output
            assert "plm point_robot-0: up to date" in output
            assert [path for node in nodes for path in (node / ".work/evaluation").glob("*/*")] == []
            for node in nodes:
                if (node / "data/evaluation").exists():
                    assert digest(node / "data/plm") == digest(root / "data/plm")
        finally:
            cluster.shutdown()


def test_resources_are_those_of_the_stage_or_what_the_largest_node_has(tmp_path: Path) -> None:
    nodes = [{"CPU": 2.0, "memory": 3.0 * 2**30}, {"CPU": 8.0, "memory": 1.0 * 2**30, "GPU": 1.0}]
    asked = Resources(cpus=4, gpus=1, memory=4)
    assert fitting(asked, nodes) == Resources(cpus=4, gpus=1, memory=1), "all of one node"
    assert fitting(Resources(cpus=4, memory=4), nodes) == Resources(cpus=2, memory=3)
    assert fitting(asked, [{"CPU": 64.0}, {"CPU": 2.0, "GPU": 1.0}]) == Resources(cpus=2, gpus=1, memory=0)
    assert fitting(asked, nodes[:1]) == Resources(cpus=2, gpus=0, memory=3)
    assert fitting(asked, nodes, gpu=False) == Resources(cpus=2, gpus=0, memory=3)
    assert fitting(asked, []).cpus == 1
    assert slots(Resources(cpus=4), nodes) == 2
    assert slots(Resources(cpus=2), nodes[:1]) == slots(asked, []) == 1
    project = graph.load(make_project(tmp_path, PARAMS))
    wanted = {name: resources(project, name, project.keys(name)[0]) for name in project.stages}
    assert wanted["plm"] == Resources(cpus=4, gpus=1, memory=4)
    assert wanted["tuned_prompt_dt"].gpus < 1
    assert wanted["report"] == Resources()
    several = graph.load(tmp_path, ("plm.processes=6",))
    assert resources(several, *PLM) == Resources(cpus=6, gpus=6, memory=24)


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PipelineError, match=r"Ray is not installed: pip install 'pd-pipeline\[ray\]'"), connected():
        pass


def test_a_cluster_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(PipelineError, match=r"--engine ray: no Ray cluster at 127.0.0.1:1 .*RAY_ADDRESS"),
        connected("127.0.0.1:1"),
    ):
        pass


def test_as_many_pieces_wait_as_keep_all_cores_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("pd_pipeline.engines.on_ray.side_by_side", lambda *_, at_once, stop: seen.append(at_once))
    Cluster([{"CPU": 3.0}, {"CPU": 4.0}, {}]).results([], lambda *_: [], lambda *_: None)
    assert seen == [14]
