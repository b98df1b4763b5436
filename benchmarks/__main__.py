"""`python -m benchmarks [--quick] [name ...]`: every benchmark in its own process, one after another."""

import argparse
import subprocess
import sys

NAMES = (
    "plm_training",
    "meta_world",
    "collection",
    "evaluation",
    "streaming",
    "importing",
    "dagster_click",
    "cluster",
    "scaling",
    "policy_step",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that all work; writes no results")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"unknown {', '.join(sorted(unknown))}: known are {', '.join(NAMES)}")
    more = ["--quick"] if given.quick else []
    failed = [
        name
        for name in given.names or NAMES
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *more], check=False).returncode
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
