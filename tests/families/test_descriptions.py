"""Descriptions of policies."""

import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.descriptions import changed, check_names


def test_a_change_leaves_the_rest_as_it_is() -> None:
    own = {"gain": 1.0, "reset": {"exploring_steps": 5, "push_chance": 0.03}}
    assert changed(own, {"reset": {"exploring_steps": 10}}) == {
        "gain": 1.0,
        "reset": {"exploring_steps": 10, "push_chance": 0.03},
    }
    assert changed(own, {"gain": 2.0, "noise": 0.1}) == own | {"gain": 2.0, "noise": 0.1}
    assert changed({}, {"reset": {"a": 1}}) == {"reset": {"a": 1}}
    assert own["gain"] == 1.0


def test_a_name_that_nothing_reads_is_refused() -> None:
    check_names({"gain": 1.0}, ("gain", "noise"))
    with pytest.raises(PipelineError, match="no value 'nosie': did you mean 'noise'"):
        check_names({"gain": 1.0, "nosie": 0.5}, ("gain", "noise"))
