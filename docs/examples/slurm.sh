#!/bin/bash
# A Ray cluster on the nodes of a Slurm job, and the pipeline on it:  sbatch --nodes=4 docs/examples/slurm.sh run all
#SBATCH --job-name=pd-pipeline
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
# For GPUs:  sbatch --gpus-per-task=1 ...
set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # the project: on a file system that all nodes share
[ ! -f .venv/bin/activate ] || . .venv/bin/activate

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_ADDRESS=$head:$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node
export RAY_USAGE_STATS_ENABLED=0

# Starts Ray on every node, runs the command on the first one when all are there, and stops Ray.
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    pd-pipeline "$@" --engine ray
