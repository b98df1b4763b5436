"""Speed and memory, each figure a ratio to a peer or to a limit measured in the same run. `python -m benchmarks`."""
