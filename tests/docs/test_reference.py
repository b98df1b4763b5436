"""The parameter reference is complete, and says what the classes say."""

import pytest
from pydantic import Field

from pd_pipeline import reference
from pd_pipeline.config import Parameters
from pd_pipeline.families.registry import BUILT_IN
from pd_pipeline.reference import Parameter
from pd_pipeline.tuning.methods import built_in


class Inner(Parameters):
    """A block inside."""

    rate: float = Field(default=0.5, gt=0, le=1, description="share; None | nothing")


class Outer(Parameters):
    """A block."""

    inner: Inner = Inner()
    maybe: Inner | None = None
    names: tuple[str, ...] = ("a",)
    table: dict[str, Inner] = {"x": Inner()}
    width: int = Field(default=8, gt=0, le=1_000_000)
    needed: int


class Lower(Outer):
    """A field that is given another default keeps its meaning."""

    inner: Inner = Inner(rate=0.25)
    needed: int = Field(default=3, description="anew")


def rows(model: type[Parameters]) -> dict[str, Parameter]:
    return {row.name: row for row in reference.parameters(model)}


def test_rows_of_a_class() -> None:
    found = rows(Outer)
    assert list(found) == [
        "needed",
        "inner.rate",
        "maybe",
        "maybe.rate",
        "names",
        "table",
        "table.<name>.rate",
        "width",
    ]
    assert found["needed"] == Parameter("needed", "integer", "required", "")
    assert found["inner.rate"] == Parameter("inner.rate", "number > 0, ≤ 1", "0.5", "share; null | nothing")
    assert (found["maybe"].type, found["maybe"].default) == ("block or null", "left out")
    assert found["maybe"].meaning == "A block inside."
    assert (found["names"].type, found["names"].default) == ("list of text", '["a"]')
    assert (found["table"].type, found["table"].default) == ("mapping to block", '{"x": {"rate": 0.5}}')
    assert found["width"] == Parameter("width", "integer > 0", "8", reference.MEANINGS["width"])


def test_a_meaning_is_inherited() -> None:
    class Changed(Inner):
        rate: float = 0.1

    assert rows(Changed)["rate"].meaning == "share; null | nothing"
    assert rows(Lower)["needed"].meaning == "anew"


def test_it_has_every_stage_method_and_family() -> None:
    names = [block.name for block in reference.blocks()]
    stages = ("behavior_policies", "trajectories", "prompts", "plm", "diffuser", "evaluation", "prompt_fit")
    assert {"run", "machine", "target", "report", *stages} <= set(names)
    assert {f"tuned_{method}" for method in built_in()} <= set(names)
    assert {f"environment of {family}" for family in BUILT_IN} <= set(names)
    assert {"environment of your own (GymnasiumFamily)", "environment of your own (ML1)"} <= set(names)
    assert len(set(names)) == len(names)
    assert all(block.title for block in reference.blocks())


def test_defaults_are_those_of_the_code() -> None:
    blocks = {block.name: {row.name: row for row in block.parameters} for block in reference.blocks()}
    from pd_pipeline.training.plm import Params

    for name in ("steps", "width", "acting_context"):
        default = Params.model_fields[name].default
        assert blocks["plm"][name].default == ("null" if default is None else str(default))
    assert blocks["diffuser"]["diffusion.schedule"].type == "`vp`, `cosine`, `linear`"
    assert blocks["tuned_prompt_diffuser"]["adapt.steps"].type == "integer > 0"


def test_every_parameter_has_a_meaning() -> None:
    silent = [
        f"{block.name}: {row.name}" for block in reference.blocks() for row in block.parameters if not row.meaning
    ]
    assert silent == [], "give the field a description"


def test_no_meaning_by_name_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = dict(reference.MEANINGS)
    monkeypatch.setattr(reference, "MEANINGS", {})
    models = [*(stage.params_class() for stage in reference.stages().values()), *_environments(), *_others()]
    silent = {row.name.rpartition(".")[2] for model in models for row in reference.parameters(model) if not row.meaning}
    assert {name.rpartition(".")[2] for name in kept} == silent


def _environments() -> list[type[Parameters]]:
    return [family.Params for family in reference.environments().values()]


def _others() -> list[type[Parameters]]:
    fields = reference.ParamsFile.model_fields.values()
    return [part for field in fields for part in reference._parts(field.annotation) if reference._is_block(part)]


def test_markdown_is_a_table_per_block() -> None:
    text = reference.markdown()
    assert text.count("| parameter | type | default | meaning |") == len(reference.blocks())
    tables = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(tables) == sum(len(block.parameters) for block in reference.blocks())
    assert all(line.replace("\\|", "").count("|") == 5 for line in tables)
