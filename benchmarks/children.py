"""Time and peak memory of a piece of code in a process of its own."""

import json
import subprocess
import sys

BEFORE = "import json, sys, time\nrows = 0\n"
AFTER = """
seconds = time.perf_counter() - started
# VmHWM starts at zero with each program; ru_maxrss would inherit the parent's
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"rows": rows, "seconds": seconds, "peak_mb": peak / 1024}))
"""


def child(code: str, *arguments: str) -> dict[str, float]:
    """Run code that sets `started` after its imports, and may set `rows`: rows, seconds and peak_mb of it."""
    program = [sys.executable, "-c", BEFORE + code + AFTER, *arguments]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)
