"""Methods with a diffuser that reads more than return and time."""

from pathlib import Path

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.conditions import Conditions, ask, conditioned
from pd_pipeline.models.diffuser import generate
from pd_pipeline.models.prompting import to_prompts
from pd_pipeline.prompts.segments import cut
from pd_pipeline.tuning.prompt_search import Params, at_phase, start_from
from pd_pipeline.tuning.unseen import Unseen
from tests.builders import trajectories
from tests.tuning.tiny import PROMPT, TASK, few_shot_of, pretrained, same_weights, tuned

CONDITIONS = Conditions(names=("phase", "effort"))


@pytest.mark.parametrize("asked", [{}, {"effort": 0.0}, {"phase": 1.0, "effort": 0.5}])
def test_prompts_are_generated_for_what_is_asked(asked: dict[str, float], tmp_path: Path) -> None:
    plm = pretrained(CONDITIONS)
    assert plm.diffuser is not None
    few_shot = few_shot_of(plm)
    found = tuned("prompt_diffuser", plm, few_shot, tmp_path, ask=asked, candidates=None, chain=2)
    _, y = conditioned(few_shot.prompts, CONDITIONS, plm.normalization)
    wanted = ask(y, CONDITIONS, asked, "")  # type: ignore[arg-type]
    assert (wanted[..., 2:].std(0) == 0).any() == bool(asked)
    made, drawn = generate(found.denoisers["guided"], plm.diffuser[1], wanted, 4, 2, 0)
    np.testing.assert_allclose(found.prompts.x0, to_prompts(made, drawn, plm.normalization, TASK).x0, rtol=1e-5)
    assert found.prompts.y.shape == (4, PROMPT, 2)


def test_guidance_asks_too(tmp_path: Path) -> None:
    """What is asked changes how the denoiser is tuned, not only what it generates in the end."""
    plm = pretrained(CONDITIONS)
    few_shot = few_shot_of(plm)
    low, high = (
        tuned("prompt_diffuser", plm, few_shot, tmp_path / name, ask={"effort": share}, candidates=None).denoisers
        for name, share in (("low", 0.0), ("high", 1.0))
    )
    same_weights(low["adapted"], high["adapted"])
    with pytest.raises(AssertionError):
        same_weights(low["guided"], high["guided"])


def test_to_ask_a_diffuser_without_conditions(tmp_path: Path) -> None:
    plm = pretrained()
    with pytest.raises(PipelineError, match=r"prompt_diffuser: ask: .*diffuser\.conditions"):
        tuned("prompt_diffuser", plm, few_shot_of(plm), tmp_path, ask={"phase": 0.5})


def test_a_search_takes_the_phase_of_whole_episodes() -> None:
    """Segments are chosen one per episode; looked at alone, each would be the last one of its own."""
    plm = pretrained(Conditions(names=("phase", "task"), tasks={0: (0.0,), 1: (1.0,), TASK: (7.0,)}))
    training = cut(trajectories((10, 8, 9), (0, 0, 1)), PROMPT)
    rows = at_phase(training, 0.5)
    _, y = start_from(plm, Unseen(TASK, training, 1.0), rows, Params())
    last = np.array([7, 5, 6])
    np.testing.assert_allclose(y[:, 0, 2], np.rint(0.5 * last) / last, rtol=1e-6)
    assert (y[..., 3] == 7.0).all(), "the target's own numbers"
    _, plain = start_from(plm, Unseen(TASK, training, 1.0), rows, Params(space="prompt"))
    assert plain.shape == (3, PROMPT, 2)
