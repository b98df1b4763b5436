"""lineage.json: all that a policy comes from, as it was made, and nothing that was made since."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pd_pipeline import __version__, graph, lineage, records, rendering
from pd_pipeline.deployment.ancestry import Ancestry, Piece, read_ancestry
from pd_pipeline.deployment.folder import describe
from pd_pipeline.deployment.writing import write_policy
from pd_pipeline.exchange.importing import Asked, bring
from pd_pipeline.graph import Graph
from pd_pipeline.incoming.ingest import ingest
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest, file_digest, read_json
from pd_pipeline.tuning import summary
from tests.conftest import run_stages
from tests.deployment.conftest import TARGET
from tests.dvc_project import SMALL_PARAMS, change, git, make_project
from tests.incoming.test_ingest import drop
from tests.recorded_project import FAMILY, FOLDER, RECORDED_PARAMS, record
from tests.training.test_stages import set_params

TUNED = "tuned_prompt_dt@point_robot-4-0"
TRAJECTORIES = "trajectories@point_robot"


def lineage_of(project: Graph, folder: Path, key: Key = TARGET, method: str = "prompt_dt") -> dict[str, Piece]:
    """The pieces in the lineage of a policy that is written now."""
    description = write_policy(project, method, key, folder)
    return {piece.name: piece for piece in read_ancestry(folder, description).pieces}


def test_every_piece_back_to_collected_trajectories(tuned_project: Path, written: Path) -> None:
    project = graph.load(tuned_project)
    found: Ancestry = read_ancestry(written, describe(written))
    pieces = {piece.name: piece for piece in found.pieces}
    assert {name: piece.needs for name, piece in pieces.items()} == {
        TUNED: ("target_data@point_robot-4", "plm@point_robot-0"),
        "target_data@point_robot-4": (TRAJECTORIES,),
        "plm@point_robot-0": (TRAJECTORIES, "prompts@point_robot"),
        TRAJECTORIES: ("behavior_policies@point_robot",),
        "prompts@point_robot": (TRAJECTORIES,),
        "behavior_policies@point_robot": (),
    }
    assert found.pieces[0].name == TUNED
    for piece in found.pieces:
        key = project.key(piece.stage, piece.key)
        assert piece.out == project.out(piece.stage, key).as_posix()
        assert piece.digest == digest(tuned_project / piece.out)
        assert piece.files == records.listing(tuned_project / piece.out)
        assert piece.code == rendering.digests(project, piece.stage, key)["code"]
        assert piece.parameters == project.stage_params(piece.stage, key).model_dump(mode="json")
        assert (piece.version, piece.revision, piece.md5) == (__version__, "unknown", None), "neither git nor DVC"
        assert piece.environment == project.family("point_robot").params.model_dump(mode="json")
        assert piece.environment_changed == {"horizon": 12, "tasks": 6, "test_tasks": [1, 4]}
        assert piece.replaced == {}
    assert pieces["plm@point_robot-0"].changed == {
        "steps": 60,
        "width": 16,
        "layers": 2,
        "context": 6,
        "log_every": 10,
    }
    assert pieces[TUNED].changed == {}
    given = summary.load(tuned_project / pieces[TUNED].out)
    assert found.tuned_on == {"expert": tuple(sorted(given.few_shot_episodes))}
    policies = read_json(tuned_project / "data/behavior_policies/point_robot/policies.json")
    sources = pieces[TRAJECTORIES].sources
    assert [(source.kind, source.quality, source.seed) for source in sources] == [
        ("collected", "expert", 0),
        ("collected", "random", 0),
    ]
    for source in sources:
        assert source.file is not None
        assert source.digest == file_digest(tuned_project / source.file).hex()
        assert source.behavior == policies[source.quality]
        assert source.versions.keys() == {"gymnasium", "numpy"}


def test_an_input_that_was_made_again_is_not_taken_for_the_one_that_was_used(project: Path, tmp_path: Path) -> None:
    run_stages(project, "tuned_prompt_dt")
    before = digest(project / "data/trajectories/point_robot")
    set_params(project, "      workers: 1\n", "      workers: 1\n      seed: 1\n")
    run_stages(project, "trajectories", "prompts")
    assert digest(project / "data/trajectories/point_robot") != before
    prompts = records.find(project, "plm", "point_robot-0").inputs["prompts"]  # type: ignore[union-attr]
    pieces = lineage_of(graph.load(project), tmp_path / "policy")
    assert pieces.keys() == {TUNED, "target_data@point_robot-4", "plm@point_robot-0"}
    assert pieces["target_data@point_robot-4"].replaced == {TRAJECTORIES: before}
    assert pieces["plm@point_robot-0"].replaced == {TRAJECTORIES: before, "prompts@point_robot": prompts}
    assert pieces["plm@point_robot-0"].parameters is not None


def test_parameters_are_those_that_it_was_made_with(project: Path, tmp_path: Path) -> None:
    run_stages(project, "tuned_prompt_dt")
    set_params(project, "plm: {steps: 60", "plm: {steps: 70")
    set_params(project, "environment: {horizon: 12", "environment: {goal_radius: 0.3, horizon: 12")
    pieces = lineage_of(graph.load(project), tmp_path / "policy")
    assert pieces["plm@point_robot-0"].changed["steps"] == 60
    assert all("goal_radius" not in piece.environment_changed for piece in pieces.values())


def test_what_was_changed_by_hand_has_no_past(project: Path, tmp_path: Path) -> None:
    run_stages(project, "tuned_prompt_dt")
    (project / "data/plm/point_robot-0/losses.csv").write_text("mine\n")
    shutil.rmtree(project / "data/records/tuned_prompt_dt")
    pieces = lineage_of(graph.load(project), tmp_path / "policy")
    assert pieces.keys() == {TUNED}
    assert (pieces[TUNED].code, pieces[TUNED].parameters, pieces[TUNED].needs) == (None, None, ())
    assert pieces[TUNED].digest == digest(project / pieces[TUNED].out)


def test_an_out_that_was_removed_is_still_known_by_its_record(project: Path, tmp_path: Path) -> None:
    run_stages(project, "tuned_prompt_dt")
    before = lineage_of(graph.load(project), tmp_path / "before")
    shutil.rmtree(project / "data/prompts")
    pieces = lineage_of(graph.load(project), tmp_path / "policy")
    assert pieces == before


def test_accepted_files_with_their_few_shot_episodes(project: Path, tmp_path: Path) -> None:
    set_params(project, "prompts: {length: 3", "target: {few_shot: 3, choose: newest}\n    prompts: {length: 3")
    drop(project, "4", task=4, goals={4: {}})
    family = graph.load(project).family("point_robot")
    later = datetime.now(UTC) + timedelta(hours=1)
    (outcome,) = ingest(project, {"point_robot": family}, settle_seconds=0, now=later)
    assert outcome.state == "accepted", outcome.message
    run_stages(project, "target_data", "tuned_prompt_dt")
    (source,) = lineage_of(graph.load(project), tmp_path / "policy")["target_data@point_robot-4"].sources
    file = project / "data/ingested/point_robot/4/0001-expert.parquet"
    assert (source.kind, source.file) == ("accepted", file.relative_to(project).as_posix())
    assert source.digest == file_digest(file).hex()
    assert source.time == later.isoformat(timespec="seconds")
    assert source.dropped == "data/incoming/point_robot/4/a.parquet"
    assert (source.first_episode, source.episodes) == (7, 2), "after the seven that were collected"
    assert read_ancestry(tmp_path / "policy", describe(tmp_path / "policy")).tuned_on == {"expert": (6, 7, 8)}


def test_imported_files_with_their_origin(trained_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text(RECORDED_PARAMS)
    source = trained_project / "data/trajectories/point_robot/expert.parquet"
    own = record(source, root / FOLDER / "own.parquet", tasks=[0, 1], shift=100)
    asked = Asked(without=(), quality="expert")
    (imported,) = bring(root, str(source), FAMILY, asked, None, None, silent, str)
    run_stages(root, "behavior_policies", "trajectories", "target_data", "prompts", "plm", "tuned_prompt_dt")
    key = Key(FAMILY, 4, 0)
    pieces = lineage_of(graph.load(root), tmp_path / "policy", key)
    found = {item.file: item for item in pieces[f"trajectories@{FAMILY}"].sources}
    assert found.keys() == {file.relative_to(root).as_posix() for file in (own, imported)}
    by_hand, brought = (found[file.relative_to(root).as_posix()] for file in (own, imported))
    assert (by_hand.kind, by_hand.origin, by_hand.digest) == ("file", (), file_digest(own).hex())
    assert (brought.kind, brought.digest) == ("imported", file_digest(imported).hex())
    (origin,) = brought.origin
    assert (origin.source, origin.format, origin.options) == (str(source), "parquet", {"quality": "expert"})
    written = datetime.fromtimestamp(imported.stat().st_mtime, UTC).isoformat(timespec="seconds")
    assert brought.time == written
    for file in (own, imported):
        file.rename(tmp_path / file.name)
    record(source, root / FOLDER / "new.parquet", shift=200)
    found_now = lineage_of(graph.load(root), tmp_path / "policy", key)[f"trajectories@{FAMILY}"].sources
    assert sorted((item.kind, item.file) for item in found_now) == [("file", None), ("imported", None)]
    assert {item.origin[0].digest for item in found_now} == {origin.digest, file_digest(tmp_path / "own.parquet").hex()}


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """A DVC project in git, with a tuned policy of point_robot."""
    root = make_project(tmp_path / "project", SMALL_PARAMS.replace(", other]", "]"))
    (root / ".gitignore").write_text("/data/\n/.work/\n/digests.json\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "begun")
    for stage in ("behavior_policies", "trajectories", "target_data", "prompts", "plm", "tuned_prompt_dt"):
        for key in (project := graph.load(root)).keys(stage):
            lineage.run(project, stage, key, silent)
    return root


def test_revisions_and_what_dvc_knows_of_outs_that_were_pulled(committed: Path, tmp_path: Path) -> None:
    key, plm = Key("point_robot", 3, 0), "plm@point_robot-0"
    begun = git(committed, "rev-parse", "HEAD").strip()
    git(committed, "add", "-A")
    git(committed, "commit", "-q", "-m", "made")
    made = git(committed, "rev-parse", "HEAD").strip()
    here = lineage_of(graph.load(committed), tmp_path / "here", key)
    assert {piece.revision for piece in here.values()} == {begun}
    lock = (committed / "dvc.lock").read_text()
    assert all(piece.md5 is not None and f"md5: {piece.md5}" in lock for piece in here.values())

    shutil.rmtree(committed / "data/records")  # as on a machine that pulled the outs
    shutil.rmtree(committed / "data/prompts")  # and not all of them
    pulled = lineage_of(graph.load(committed), tmp_path / "pulled", key)
    assert pulled.keys() == here.keys()
    for name, piece in pulled.items():
        assert (piece.revision, piece.committed) == (None, made)
        for field in ("md5", "code", "parameters", "environment", "needs"):
            assert getattr(piece, field) == getattr(here[name], field), (name, field)
        assert piece.digest == (None if piece.stage == "prompts" else here[name].digest)

    change(committed, "plm: {steps: 4", "plm: {steps: 5")
    later = lineage_of(graph.load(committed), tmp_path / "later", key)
    assert later[plm].parameters is None, "those in params.yaml are not those that it was made with"
    assert later[plm].code == here[plm].code
    assert later["prompts@point_robot"].parameters == here["prompts@point_robot"].parameters
    found = read_ancestry(tmp_path / "later", describe(tmp_path / "later"))
    assert found.revision == f"{made} with uncommitted changes"
