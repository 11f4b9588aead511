#!/bin/bash
# Labels with a Slurm job array: no scheduler of dask, no process that must stay. Not run by us: no Slurm here; what it
# calls, `--shard-range`, is tested.
#   sbatch --array=1-16 jobs/slurm-array.sh --images /shared/photos --out /shared/labels/x
# Each task does its part of the shards; the last one to be done finishes the folder. A task that was killed is repeated
# by `PARTS=16 sbatch --array=7 …` with the same arguments, where 16 is the number of tasks at first, and whatever is
# missing in the end by the command without --shard-range. `sea-pipeline status /shared/labels/x` shows how far they are.
#SBATCH --job-name=sea-label
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
set -euo pipefail
exec sea-pipeline label --shard-range "$SLURM_ARRAY_TASK_ID/${PARTS:-$SLURM_ARRAY_TASK_COUNT}" "$@"
