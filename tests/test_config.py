"""params.yaml: what is read, and that every mistake is reported with its place."""

from pathlib import Path

import pytest
from pydantic import Field

from pd_pipeline import config
from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.parsing import parse

GOOD = """\
run: {families: [plane], seeds: [0, 1], methods: [prompt_dt]}
families:
  plane:
    environment: {horizon: 5}
    plm: {learning_rate: 1e-3}
    diffuser:
"""


def written(root: Path, text: str) -> Path:
    (root / "params.yaml").write_text(text)
    return root


def test_reads_yaml_1_2(tmp_path: Path) -> None:
    params = config.load(written(tmp_path, GOOD))
    assert params.run.seeds == (0, 1)
    assert params.block("plane", "plm") == {"learning_rate": 0.001}, "1e-3 is a number, as DVC reads it"
    assert params.block("plane", "diffuser") == {}, "an empty block takes the defaults"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("[0, 1]", "[0, 0]"), r"run\.seeds contains duplicates"),
        (GOOD.replace("[plane]", "[plane, plane]"), r"run\.families contains duplicates"),
        (GOOD.replace("seeds: [0, 1]", "seeds: []"), r"run\.seeds"),
        (GOOD.replace("seeds: [0, 1]", "seeds: [zero]"), r"run\.seeds\.0: .*integer.*'zero'"),
        (GOOD.replace("[0, 1]", "0"), r"run\.seeds: should be a list, such as \[0\] \(found 0\)"),
        (GOOD.replace("[0, 1]", "[-1]"), r"^params\.yaml: run\.seeds\.0: [^;]*or equal to 0 \(found -1\)$"),
        (GOOD + "run: {}\n", r'params\.yaml, line 7: found duplicate key "run".*: keep one of the two$'),
        (GOOD.replace("seeds", "sedes"), r"run\.sedes: no such parameter: did you mean 'seeds'"),
        (GOOD + "machine: {device: gpu}\n", r"machine\.device: String should match"),
        (GOOD + "machine: {device: 'cuda:x'}\n", r"machine\.device: String should match"),
        (GOOD + "automation: {retune: nightly}\n", r"automation\.retune: .*write five fields"),
        (GOOD + "automation: {retune: '0 2 * *'}\n", r"automation\.retune: .*write five fields"),
        (GOOD + "automation: {retune: '61 2 * * *'}\n", r"automation\.retune: .*write five fields"),
        (GOOD + "automation: {retune: '0 2 * 0 *'}\n", r"automation\.retune: .*write five fields"),
        (GOOD + "automation: {time_zone: Mars/Base}\n", r"automation\.time_zone: .*not a known time zone"),
        (
            GOOD + "automation: {owners: [bob]}\n",
            r"automation\.owners: .*'bob' is neither a mail address nor team:NAME",
        ),
        (GOOD + "automation: {alert: {url: 'ftp://x'}}\n", r"automation\.alert\.url: String should match"),
        ("run: [", r"params\.yaml, line 1: not valid YAML: expected the node content"),
        (GOOD + "machine: {data_root: s3://x}\n", r"line \d+: not valid YAML: .* for DVC: quote texts with a colon"),
        (GOOD + "automation: {retune: * * * * *}\n", r"line \d+: not valid YAML: .* quote a text that begins with it"),
        (GOOD + "automation: {retune: x}\n", r"^params\.yaml: automation\.retune: not a cron expression"),
        ("", r"params\.yaml: "),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        config.load(written(tmp_path, text))


TARGETS = """\
run: {families: [plane], methods: [prompt_dt]}
families:
  plane:
    target: {few_shot: 3, quality: medium}
    tuned_prompt_dt: {prompts: 4}
    tuned_other: {target: {quality: random}}
"""


def test_the_data_of_targets_are_said_once(tmp_path: Path) -> None:
    params = config.load(written(tmp_path, TARGETS))
    common = {"few_shot": 3, "quality": "medium"}
    assert params.block("plane", "tuned_prompt_dt") == {"prompts": 4, "target": common}
    assert params.block("plane", "tuned_lora") == {"target": common}, "a block that is left out gets them too"
    assert params.block("plane", "tuned_other") == {"target": {"few_shot": 3, "quality": "random"}}
    assert params.block("plane", "plm") == {}, "pre-training has its own data"


def test_a_stage_of_all_families_has_its_block_at_the_top(tmp_path: Path) -> None:
    params = config.load(written(tmp_path, GOOD + "report: {rollouts: false}\n"))
    assert params.block(None, "report") == {"rollouts": False}
    assert params.block(None, "elsewhere") == {}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no such file"):
        config.load(tmp_path)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(PipelineError, match=r"params\.yaml: not a file: move it away"):
        config.load(tmp_path)


def test_missing_blocks(tmp_path: Path) -> None:
    params = config.load(written(tmp_path, GOOD))
    assert params.block("plane", "prompts") == {}, "left out, it takes the defaults"
    assert params.block("sphere", "plm") == {}


class Inner(Parameters):
    rate: float = Field(gt=0)


class Outer(Parameters):
    inner: Inner
    count: int = 1


def test_parse_names_every_violation_with_its_place_and_value() -> None:
    with pytest.raises(PipelineError) as caught:
        parse(Outer, {"inner": {"rate": -1.0}, "count": "many", "more": 2}, "here")
    lines = str(caught.value).split("; ")
    assert len(lines) == 3
    assert any(line.startswith("here.inner.rate: ") and "-1.0" in line for line in lines)
    assert any(line.startswith("here.count: ") and "'many'" in line for line in lines)
    assert any(line.startswith("here.more: ") for line in lines)


def test_parameters_are_immutable() -> None:
    params = parse(Outer, {"inner": {"rate": 2}}, "here")
    with pytest.raises(ValueError, match="frozen"):
        params.count = 5


def test_overrides_replace_values_of_the_file() -> None:
    values = {"run": {"families": ["a", "b"], "seeds": [0]}, "families": {"a": {"plm": {"steps": 5, "width": 8}}}}
    found = config.overridden(values, ["plm.steps=100", "run.seeds=[1, 2]", "families.b.plm.learning_rate=1e-3"])
    assert found["run"]["seeds"] == [1, 2]
    assert found["families"]["a"]["plm"] == {"steps": 100, "width": 8}
    assert found["families"]["b"]["plm"] == {"steps": 100, "learning_rate": 0.001}
    assert values["families"] == {"a": {"plm": {"steps": 5, "width": 8}}}, "those of the file are unchanged"


@pytest.mark.parametrize("override", ["plm.steps", "=5", "steps=5", "plm..steps=5", "plm.steps=["])
def test_malformed_overrides_are_refused(override: str) -> None:
    with pytest.raises(PipelineError, match="--set"):
        config.overridden({"run": {"families": ["a"]}}, [override])


@pytest.mark.parametrize(
    "values",
    [
        {"run": 5},
        {"run": {"seeds": [0]}},
        {"run": {"families": [{"a": None}, 5]}},
        {"run": {"families": 5}},
        None,
        {"families": {"a": {"plm": 3}}},
    ],
)
def test_an_override_of_a_broken_file_gives_one_line(values: object) -> None:
    with pytest.raises(PipelineError):
        config.validated(config.overridden(values, ["run.seeds.first=1", "plm.steps=5", "families.a.plm.steps=5"]))
