#!/bin/bash
# One round of several folds, a job each, judged together; each step waits for the one before it:
#   ./chains.sh DATASET WORKSPACE "0 1 2 3 4" ROUND
# The folds are trained already (train_fold.sbatch). Started again, it does what is missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dataset=${1:?name the dataset folder} workspace=${2:?name the workspace} folds=${3:?name the folds} round=${4:?which}

submit() { # prints the number of the job
    local job
    job=$(sbatch --parsable --kill-on-invalid-dep=yes "$@")
    echo "${job%%;*}"
}

array=--array=${folds// /,}
# All label before one selects: each selects by what is known of the held-out cases of all of them.
label=$(submit "$array" "$here/chain.sbatch" "$dataset" "$workspace" "$folds" "$round" --step label)
rest=$(submit "$array" --dependency="afterok:$label" "$here/chain.sbatch" "$dataset" "$workspace" "$folds" "$round")
last=$(submit --dependency="afterok:$rest" "$here/round.sbatch" "$dataset" "$workspace" "$folds" "$round")
echo "the last of the jobs is $last"
