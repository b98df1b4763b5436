"""The graph: keys, dependencies, and which files an out depends on."""

from pathlib import Path

import pytest

from pd_pipeline import graph, made_from, rendering
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.stages import ACROSS
from tests.dvc_project import SMALL_PARAMS


@pytest.fixture
def project(tmp_path: Path) -> Graph:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS.replace("seeds: [0]", "seeds: [0, 7]"))
    return graph.load(tmp_path)


def test_keys_are_the_product_of_the_axes(project: Graph) -> None:
    assert [str(key) for key in project.keys("trajectories")] == ["point_robot", "other"]
    assert [str(key) for key in project.keys("plm")] == ["point_robot-0", "point_robot-7", "other-0", "other-7"]
    tuned = [str(key) for key in project.keys("tuned_prompt_dt")]
    assert tuned[:4] == ["point_robot-1-0", "point_robot-1-7", "point_robot-3-0", "point_robot-3-7"]
    assert project.keys("report") == [Key()]


def test_every_key_is_found_by_its_text(project: Graph) -> None:
    for stage in project.stages:
        for key in project.keys(stage):
            assert project.key(stage, str(key)) == key


@pytest.mark.parametrize(
    ("stage", "key", "named"),
    [
        ("plm", "other-5", "stage plm has no key 'other-5': .*other-7"),
        ("report", "other-5", r"stage report has no key 'other-5': the keys in params\.yaml are none"),
        ("nothing", "", "unknown stage 'nothing': choose one of behavior_policies"),
    ],
)
def test_unknown_stages_and_keys_are_refused_with_the_known_ones(
    project: Graph, stage: str, key: str, named: str
) -> None:
    with pytest.raises(PipelineError, match=named):
        project.key(stage, key)


def test_an_unknown_stage_has_no_keys(project: Graph) -> None:
    with pytest.raises(PipelineError, match="unknown stage 'plmm': did you mean 'plm'"):
        project.keys("plmm")


def test_upstream_keys_agree_on_every_common_axis(project: Graph) -> None:
    for stage in project.stages:
        for key in project.keys(stage):
            for _, other in project.upstream(stage, key):
                if key.family is not None:
                    assert other.family == key.family
                assert None in (key.seed, other.seed) or key.seed == other.seed
    evaluation = project.upstream("evaluation", Key("other", None, 7))
    assert [str(key) for name, key in evaluation if name == "tuned_prompt_dt"] == ["other-1-7", "other-3-7"]


def test_no_two_pieces_share_an_out(project: Graph) -> None:
    outs = [project.out(stage, key) for stage in project.stages for key in project.keys(stage)]
    assert len(set(outs)) == len(outs)
    assert not any(one in other.parents for one in outs for other in outs)


def test_an_input_folder_contains_the_outs_of_its_keys(project: Graph) -> None:
    for stage in project.stages:
        for key in project.keys(stage):
            for need, other in project.upstream(stage, key):
                folder, out = project.input(stage, key, need), project.out(need, other)
                assert folder == out or folder in out.parents


@pytest.mark.parametrize("name", ["a.b", "a b", "a/b", "1a", "a@b", "a,b"])
def test_a_family_name_that_no_key_can_carry_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS.replace("other", f'"{name}"'))
    with pytest.raises(PipelineError, match="String should match pattern"):
        graph.load(tmp_path)


def test_a_block_that_no_stage_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS + "reprot: {rollouts: false}\n")
    with pytest.raises(PipelineError, match=r"params\.yaml: reprot: no such block: did you mean 'report'"):
        graph.load(tmp_path)


def test_a_stage_of_all_families_has_parameters(project: Graph, tmp_path: Path) -> None:
    assert {name for name, stage in project.stages.items() if not stage.axes} == set(ACROSS)
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS.replace("report: {rollouts: false}\n", ""))
    assert graph.load(tmp_path).stage_params("report", Key()).model_dump() == {"rollouts": True}
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    changed = graph.load(tmp_path)
    assert changed.stage_params("report", Key()).model_dump() == {"rollouts": False}
    overridden = graph.load(tmp_path, ("report.rollouts=true",))
    assert overridden.stage_params("report", Key()).model_dump() == {"rollouts": True}
    digests = [rendering.digests(each, "report", Key())["parameters"] for each in (changed, overridden)]
    assert digests[0] != digests[1]


def test_the_device_is_part_of_no_digest(project: Graph, tmp_path: Path) -> None:
    key = project.keys("plm")[0]
    before = project.stage_params("plm", key), rendering.all_digests(project), rendering.render(project)
    other = graph.load(tmp_path, ("machine.device=mps",))
    assert other.params.machine.device == "mps"
    assert (other.stage_params("plm", key), rendering.all_digests(other), rendering.render(other)) == before


def parameters_of(project: Graph, family: str) -> dict[str, str]:
    found = rendering.all_digests(project)
    return {stage: digests[family]["parameters"] for stage, digests in found.items() if family in digests}


def test_the_data_of_targets_make_stale_what_is_tuned_on_them_and_nothing_else(project: Graph, tmp_path: Path) -> None:
    before = parameters_of(project, "other")
    after = parameters_of(graph.load(tmp_path, ("families.other.target.few_shot=2",)), "other")
    assert {name for name in before if before[name] != after[name]} == {"tuned_prompt_dt", "tuned_noise_prompt"}


VARIANT = SMALL_PARAMS.replace("run: {", "run: {variants: {prompt_dt_all: prompt_dt}, ")


def varied(folder: Path, text: str) -> Graph:
    (folder / "params.yaml").write_text(text)
    return graph.load(folder)


def test_a_variant_is_its_method_with_other_parameters(tmp_path: Path) -> None:
    text = VARIANT.replace("methods: [prompt_dt", "methods: [prompt_dt_all, prompt_dt")
    text = text.replace(
        "    tuned_prompt_dt:", "    tuned_prompt_dt_all: {target: {few_shot: null}}\n    tuned_prompt_dt:"
    )
    project = varied(tmp_path, text)
    stage, key = project.stages["tuned_prompt_dt_all"], project.keys("tuned_prompt_dt_all")[0]
    assert stage.needs == project.stages["tuned_prompt_dt"].needs
    assert made_from.code(project, "tuned_prompt_dt_all", key) == made_from.code(project, "tuned_prompt_dt", key)
    assert project.stage_params("tuned_prompt_dt_all", key).model_dump()["target"]["few_shot"] is None
    assert project.stage_params("tuned_prompt_dt", key).model_dump()["target"]["few_shot"] is not None
    assert project.out("tuned_prompt_dt_all", key) != project.out("tuned_prompt_dt", key)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("{noise_prompt: prompt_dt}", r"run\.variants: \['noise_prompt'\] are names of methods"),
        ("{Bad-name: prompt_dt}", r"run\.variants: \['Bad-name'\]: use only lower-case letters"),
    ],
)
def test_invalid_names_of_variants_are_refused(tmp_path: Path, variants: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        varied(tmp_path, VARIANT.replace("{prompt_dt_all: prompt_dt}", variants))


def test_a_block_of_a_family_that_there_is_not_is_refused(tmp_path: Path) -> None:
    """Its parameters would be ignored, and the defaults trained on for hours."""
    text = "run: {families: [point_robot], methods: [prompt_dt]}\nfamilies: {point_robt: {plm: {steps: 3}}}\n"
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(PipelineError, match=r"families\.point_robt: neither .*: did you mean 'point_robot'\?"):
        graph.load(tmp_path)
    (tmp_path / "params.yaml").write_text(text.replace("point_robt", "reach"))
    assert graph.load(tmp_path).params.run.families == ("point_robot",), "one that is built in may wait for its run"


def test_a_variant_of_an_unknown_method_is_refused(tmp_path: Path) -> None:
    text = VARIANT.replace("prompt_dt_all: prompt_dt", "mine: no_such_method").replace("methods: [", "methods: [mine, ")
    with pytest.raises(PipelineError, match=r"run\.variants\.mine: 'no_such_method' is not a method"):
        varied(tmp_path, text)


def test_an_out_that_is_a_link_is_not_replaced(project: Graph, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / project.out("behavior_policies", Key("other"))
    out.parent.mkdir(parents=True)
    out.symlink_to(elsewhere)
    with pytest.raises(PipelineError, match=r"data/behavior_policies/other is a link.*link a folder above it"):
        run_piece(project, "behavior_policies", Key("other"), silent)
    assert out.is_symlink()
    out.unlink()
    out.parent.rmdir()
    out.parent.symlink_to(elsewhere)
    run_piece(project, "behavior_policies", Key("other"), silent)
    assert (elsewhere / "other/policies.json").is_file()


def test_a_family_of_the_package_needs_no_block_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("run: {families: [point_robot], methods: [prompt_dt]}\n")
    project = graph.load(tmp_path)
    assert project.tasks == {"point_robot": (3, 8)}
    assert project.stage_params("plm", Key("point_robot", None, 0)).model_dump()["steps"] == 2400
    (tmp_path / "params.yaml").write_text("run: {families: [point_robt], methods: [prompt_dt]}\n")
    with pytest.raises(
        PipelineError, match=r"unknown family 'point_robt': did you mean 'point_robot'.*built in: reach"
    ):
        graph.load(tmp_path)
