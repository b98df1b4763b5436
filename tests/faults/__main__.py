"""`make faults`: every attack in full; prints a table and exits with 1 if anything was lost."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: equal bytes on any machine
RESULTS = Path(__file__).parents[2] / "results" / "faults.json"


def main() -> None:
    """Run the attacks; `--only NAME`: one kind, `--share 0.1`: a tenth of the tries, `--write`: save to results/."""
    from pd_pipeline.storage import write_json
    from tests.faults import files, kills, parameters, pool
    from tests.faults.report import Attack, table

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("kills", "files", "parameters", "pool"))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep the table in results/faults.json")
    asked = parser.parse_args()

    def wanted(name: str) -> bool:
        return asked.only in (None, name)

    def count(full: int) -> int:
        return max(1, round(full * asked.share))

    found: list[Attack] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        if wanted("parameters"):
            (folder / "parameters").mkdir()
            found.append(parameters.attack(folder / "parameters", count(200), asked.seed))
            print(table(found), flush=True)
        if wanted("files"):
            root = made(folder / "made")
            trajectories = root / "data/trajectories/point_robot/expert.parquet"
            found.append(files.trajectories(trajectories, count(350), folder, asked.seed))
            found.append(files.outs(root, count(150), asked.seed))
            print(table(found), flush=True)
        if wanted("kills"):
            expected = kills.undisturbed(folder / "quiet")
            for door, tries in (("pd-pipeline run all", 90), ("dvc repro", 60), ("dagster job execute", 50)):
                found.append(kills.attack(door, count(tries), folder, expected, asked.seed))
                print(table(found), flush=True)
        if wanted("pool"):
            found.append(pool.attack(folder / "pool"))
    print(table(found))
    if asked.write:
        rows = [{"name": a.name, "tries": a.tries, "survived": a.tries - len(a.failures)} for a in found]
        about = {"share": asked.share, "seed": asked.seed, "cores": os.cpu_count()}
        write_json(RESULTS, about | {"attacks": rows})
    sys.exit(any(attack.failures for attack in found))


def made(root: Path) -> Path:
    """A finished project."""
    from pd_pipeline import graph
    from pd_pipeline.piece import run_piece
    from pd_pipeline.progress import silent
    from tests.conftest import TINY_PARAMS

    root.mkdir()
    (root / "params.yaml").write_text(TINY_PARAMS)
    project = graph.load(root)
    for stage in project.stages:
        for key in project.keys(stage):
            run_piece(project, stage, key, silent)
    return root


if __name__ == "__main__":
    main()
