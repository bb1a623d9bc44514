#!/bin/bash
# Trains a fold and then goes through rounds of self-training; each job waits for the one before it:
#   ./self_training.sh DATASET WORKSPACE [FOLD [ROUNDS]]
# The dataset is planned and prepared already (flaresemi_plan_and_preprocess). Started again, it does what is missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dataset=${1:?name the dataset folder} workspace=${2:?name the workspace} fold=${3:-0} rounds=${4:-1}

submit() { # prints the number of the job
    local job
    job=$(sbatch --parsable --kill-on-invalid-dep=yes "$@")
    echo "${job%%;*}"
}

last=$(submit --array="$fold" "$here/train_fold.sbatch" "$dataset" "$workspace")
for round in $(seq "$rounds"); do
    label=$(submit --dependency="afterok:$last" "$here/label_pool.sbatch" "$dataset" "$workspace" "$fold")
    # After any end: what failed tasks have left, the round labels itself.
    last=$(submit --dependency="afterany:$label" "$here/round.sbatch" "$dataset" "$workspace" "$fold" "$round")
done
echo "the last of the jobs is $last"
