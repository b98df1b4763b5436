"""The table of methods: read from their files, extended by a user's own modules."""

import subprocess
import sys
from pathlib import Path

import pytest

from pd_pipeline.config import RunParams
from pd_pipeline.errors import PipelineError
from pd_pipeline.tuning.methods import built_in, chosen, known


def asked(**values: object) -> RunParams:
    return RunParams.model_validate({"families": ["x"], "methods": ["prompt_dt"]} | values)


def test_the_methods_of_the_package() -> None:
    table = built_in()
    assert {name for name, method in table.items() if "diffuser" in method.needs} == {
        "nearest_task",
        "prompt_diffuser",
        "prompt_diffuser_online",
        "prompt_diffuser_zero_shot",
        "prompt_search",
    }
    assert all(method.needs[:2] == ("target_data", "plm") for method in table.values())
    assert all(method.source.name == f"{name}.py" for name, method in table.items())
    blind = {name for name, method in table.items() if not method.demonstrations}
    assert blind == {"nearest_task", "prompt_diffuser_zero_shot", "prompt_search"}
    online = {name for name, method in table.items() if method.online}
    assert online == {"prompt_bandit", "prompt_diffuser_online", "prompt_search", "prompt_tuning_ranking_online"}
    assert {"prompt_dt", "full_finetune", "noise_prompt"} <= set(table)
    assert not {"stage", "protocol", "adaptation", "methods"} & set(table)


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from pd_pipeline.tuning.methods import built_in; assert built_in();"
        "sys.exit('torch' in sys.modules or 'dvc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_module_of_the_user_is_a_method(tmp_path: Path) -> None:
    (tmp_path / "bold_method.py").write_text(
        'NEEDS = ("diffuser",)\nONLINE = True\n\n\nclass Params: ...\n\n\ndef tune(plm, target, params, run): ...\n'
    )
    found = known(asked(extensions={"bold": "bold_method"}), tmp_path)["bold"]
    assert found.needs == ("target_data", "plm", "diffuser")
    assert found.online
    assert found.source == tmp_path / "bold_method.py"
    assert "bold_method" not in sys.modules, "read, not imported"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine", None, "run.extensions.mine: no module 'odd_method'"),
        ("mine", "x = 1\n", "defines no function `tune`"),
        ("mine", "def tune(:\n", "not valid Python"),
        ("mine", "NEEDS = ('everything',)\ndef tune(): ...\n", "NEEDS is .*stages among diffuser"),
        ("mine", "ONLINE = 1\ndef tune(): ...\n", "ONLINE is 1, not True or False"),
        ("mine", "DEMONSTRATIONS = 0\ndef tune(): ...\n", "DEMONSTRATIONS is 0, not True or False"),
        ("mine", "DEMONSTRATIONS = False\ndef tune(): ...\n", "NEEDS must name 'prompts'"),
        ("mine", "NEEDS = tuple(x for x in ())\ndef tune(): ...\n", "NEEDS must be a plain literal"),
        ("prompt_dt", "def tune(): ...\n", "'prompt_dt' is a built-in method"),
    ],
)
def test_invalid_method_modules_are_refused(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "odd_method.py").write_text(text)
    with pytest.raises(PipelineError, match=message):
        known(asked(extensions={name: "odd_method"}), tmp_path)


@pytest.mark.parametrize("module", ["../odd", "a b", "", "a:b", "a..b", 5])
def test_unknown_modules_are_refused(module: object) -> None:
    with pytest.raises(ValueError, match="extensions"):
        asked(extensions={"mine": module})


def test_configured_methods_and_variants() -> None:
    table = built_in()
    run = asked(methods=["prompt_dt", "again"], variants={"again": "prompt_dt", "unused": "full_finetune"})
    assert chosen(run, table) == {"prompt_dt": table["prompt_dt"], "again": table["prompt_dt"]}
    with pytest.raises(PipelineError, match="'promt_dt' is not a method: did you mean 'prompt_dt'"):
        chosen(asked(methods=["promt_dt"]), table)
    with pytest.raises(PipelineError, match=r"\['prompt_dt'\] are names of methods"):
        chosen(asked(variants={"prompt_dt": "full_finetune"}), table)
