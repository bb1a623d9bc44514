#!/bin/bash
# The batch files of docs/slurm in a real SLURM, two nodes on one machine: is what is requeued or preempted gone on with?
#   benchmarks/slurm.sh DATASET WORKSPACE FOLDER
# DATASET: flaresemi_demo --only-data. WORKSPACE: planned, two folds, tiny networks (kill_rounds.shrink); FOLDER: for logs
# and copies. SLURM_CONF names the configuration that results/slurm.md shows. Result: results/slurm.md, by hand.
set -u
data=${1:?name the dataset} planned=${2:?name the workspace} folder=${3:?name a folder}
files=$(cd "$(dirname "$0")/../docs/slurm" && pwd)
training=(--iterations 60 --learning-rate 0.01 --ema-decay 0 --validations 0 --device cpu --precision fp32
    --checkpoint-minutes 0.05)
mkdir -p "$folder"
cd "$folder" || exit 2

say() { echo "[$(date +%T)] $*"; }
ended() { # waits for a job, and says how it ended
    while squeue -h -j "$1" 2>/dev/null | grep -q .; do sleep 1; done
    scontrol show job "$1" | grep -oE "^JobId=.*|JobState=\S+|Restarts=\S+|ExitCode=\S+|(Start|End)Time=\S+" | paste -sd' '
}

say "prepare, an array of two"
ended "$(sbatch --parsable --array=0-1 "$files/prepare.sbatch" "$data" "$planned" --workers 1)"
flaresemi_plan_and_preprocess -d "$data" -w "$planned" --workers 1
work=$folder/work
cp -r "$planned" "$work"

say "train; fold 0 is requeued by hand, fold 1 is preempted"
first=$(sbatch --parsable --array=0 -w node1 "$files/train_fold.sbatch" "$data" "$work" "${training[@]}")
second=$(sbatch --parsable --array=1 -w node2 -c 64 "$files/train_fold.sbatch" "$data" "$work" "${training[@]}")
until [ -s "$work/models/fold_0/COARSE/history.jsonl" ]; do sleep 0.3; done
say "scontrol requeue ${first}_0"
scontrol requeue "${first}_0"
until [ -s "$work/models/fold_1/FINE/history.jsonl" ]; do sleep 0.3; done
say "a job of higher priority for all of node2"
ended "$(sbatch --parsable -p high -w node2 -c 64 --wrap "sleep 3")"
ended "$first"
ended "$second"

say "predict, an array of four"
ended "$(sbatch --parsable --array=0-3 "$files/predict.sbatch" "$data/test_image" predictions "$work/models" --fold 0)"
say "self_training.sh"
cp -r "$work" one
ended "$("$files/self_training.sh" "$data" "$folder/one" 0 1 | grep -o '[0-9]*$')"
flaresemi_semi_round -d "$data" -w one --fold 0 --status
say "chains.sh"
ended "$("$files/chains.sh" "$data" "$work" "0 1" 1 | grep -o '[0-9]*$')"
flaresemi_semi_round -d "$data" -w "$work" --fold 0 1 --status
say "round_nodes.sbatch, a process on each of two nodes"
cp -r "$work" nodes
rm -r nodes/rounds
# The nodes are one machine under two names: a process each, and an address that both know.
sed 's/"\$SLURM_GPUS_ON_NODE"/1/; s/"\$head:/"127.0.0.1:/' "$files/round_nodes.sbatch" > nodes.sbatch
ended "$(sbatch --parsable nodes.sbatch "$data" "$folder/nodes" 0 1 --device cpu)"
say "done"
