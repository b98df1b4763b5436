"""Study files: their points, and errors that name the place of every mistake."""

import shutil
from pathlib import Path

import pytest

from pd_pipeline import config, graph, preflight
from pd_pipeline.errors import PipelineError
from pd_pipeline.studies.definition import label, names, read
from pd_pipeline.yaml_text import merged

GOOD = """\
title: Does it matter?
base: {run: {methods: [prompt_dt]}}
grid:
  target.few_shot: [1, 2]
  tuned_prompt_diffuser.mode: [project, dm_only]
seeds: [3, 4]
"""


def written(root: Path, text: str) -> Path:
    (root / "studies").mkdir(exist_ok=True)
    (root / "studies/mine.yaml").write_text(text)
    return root


def test_points_are_every_combination(tmp_path: Path) -> None:
    study = read(written(tmp_path, GOOD), "mine")
    few_shot, mode = "target.few_shot", "tuned_prompt_diffuser.mode"
    assert study.points == [
        {few_shot: 1, mode: "project"},
        {few_shot: 1, mode: "dm_only"},
        {few_shot: 2, mode: "project"},
        {few_shot: 2, mode: "dm_only"},
    ]
    assert label(study.points[1]) == "few_shot 1, mode dm_only"
    assert names(tmp_path) == ["mine"]


def test_overrides_give_the_values_of_the_point(tmp_path: Path) -> None:
    text = GOOD.replace("[1, 2]", "[null, 2]").replace("[project, dm_only]", "['1e3', {a: [1.5]}]")
    study = read(written(tmp_path, text), "mine")
    values = {"run": {"families": ["plane"], "studies": ["mine"]}, "families": {}}
    found = config.overridden(values, study.overrides(study.points[1]))
    assert found["run"] == {"families": ["plane"], "studies": [], "seeds": [3, 4]}
    assert found["families"]["plane"] == {
        "target": {"few_shot": None},
        "tuned_prompt_diffuser": {"mode": {"a": [1.5]}},
    }
    again = config.overridden(values, study.overrides(study.points[0]))
    assert again["families"]["plane"]["tuned_prompt_diffuser"]["mode"] == "1e3", "a string stays a string"


def test_base_replaces_values_block_by_block() -> None:
    values = {"run": {"seeds": [0], "methods": ["a"]}, "families": {"x": {"plm": {"steps": 5, "width": 8}}, "y": None}}
    base = {"run": {"methods": ["b"]}, "families": {"x": {"plm": {"steps": 7}, "diffuser": {"steps": 1}}, "y": {}}}
    found = merged(values, base)
    assert found == {
        "run": {"seeds": [0], "methods": ["b"]},
        "families": {"x": {"plm": {"steps": 7, "width": 8}, "diffuser": {"steps": 1}}, "y": {}},
    }
    assert values["families"]["x"] == {"plm": {"steps": 5, "width": 8}}, "the original values are unchanged"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Does it matter?", "", r"studies/mine\.yaml: title: Field required"),
        ("grid:", "gird:", r"studies/mine\.yaml: gird: no such parameter: did you mean 'grid'"),
        ("[1, 2]", "[]", r"mine\.yaml: grid\.target\.few_shot"),
        ("target.few_shot: [1, 2]", "run.seeds: [[1], [2]]", r"grid\.run\.seeds: set it in `seeds` or `base`"),
        ("target.few_shot: [1, 2]", "machine.device: [cpu]", r"grid\.machine\.device: set it in"),
        ("[1, 2]", f"{list(range(600))}", r"1,200 points: at most 1,000"),
        ("seeds: [3, 4]", "seeds: []", r"mine\.yaml: seeds"),
        ("title:", "title: [", "not valid YAML"),
    ],
)
def test_mistakes_are_reported_with_their_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(PipelineError, match=message):
        read(written(tmp_path, GOOD.replace(old, new)), "mine")


def test_a_grid_is_not_made_if_it_is_too_large(tmp_path: Path) -> None:
    many = "".join(f"  plm.p{number}: {list(range(900))}\n" for number in range(9))
    with pytest.raises(PipelineError, match=r",000 points: at most 1,000"):
        read(written(tmp_path, GOOD.replace("grid:\n", f"grid:\n{many}")), "mine")


def test_a_missing_study_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"studies/other\.yaml: no such study: choose one of mine"):
        read(written(tmp_path, GOOD), "other")


REPOSITORY = Path(__file__).parents[2]


SHIPPED = [(root, name) for root in (REPOSITORY, REPOSITORY / "published") for name in names(root)]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Project of this repository -> a copy of it without data, where each environment is tried once for all studies."""
    copies = {root: tmp_path_factory.mktemp("shipped") for root, _ in SHIPPED}
    for root, copy in copies.items():
        shutil.copy(root / "params.yaml", copy)
        shutil.copytree(root / "studies", copy / "studies")
        if (root / "policies").is_dir():
            (copy / "policies").symlink_to(root / "policies")
    return copies


@pytest.mark.parametrize(("root", "name"), SHIPPED, ids=[name for _, name in SHIPPED])
def test_shipped_studies_are_valid(shipped: dict[Path, Path], root: Path, name: str) -> None:
    preflight.check_points(graph.load(shipped[root]), name)
    study = read(root, name)
    methods = study.base.get("run", {}).get("methods", ["one"])
    assert len(study.points) * len(methods) > 1, "it compares something: points or methods"


@pytest.mark.parametrize("name", ["../x", "1x", "a-b", ""])
def test_a_name_that_no_stage_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PipelineError, match=r"^study '.*': a name starts with a small letter"):
        read(written(tmp_path, GOOD), name)


def test_a_folder_is_no_study(tmp_path: Path) -> None:
    (written(tmp_path, GOOD) / "studies/folder.yaml").mkdir()
    assert names(tmp_path) == ["mine"]
