#!/usr/bin/env bash
# Labels by a job array: by sbatch if this machine has it, else by as many processes here, to see how it works.
#   bash examples/slurm_array.sh TASKS PHOTOS LABELS [more options of label]
# Each task does its part of the shards, and the last one finishes the folder. Run it again to go on.
set -euo pipefail
tasks=$1 photos=$2 labels=$3
shift 3
job=("$(dirname "$0")/../jobs/slurm-array.sh" --images "$photos" --out "$labels" "$@")
if command -v sbatch >/dev/null; then
    sbatch --wait --array="1-$tasks" "${job[@]}"
else
    for task in $(seq "$tasks"); do
        SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=$tasks bash "${job[@]}" &
    done
    wait
fi
sea-pipeline verify "$labels"
