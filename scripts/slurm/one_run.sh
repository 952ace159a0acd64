#!/bin/bash
# One run, begun or gone on with: sbatch scripts/slurm/one_run.sh
#
# `rlx submit -- ...` writes such a script for you. This one is to be copied and changed; it also goes on with a run that
# was begun elsewhere, by `rlx train run_dir=...`.
#
#SBATCH --job-name=ppo-cartpole
#SBATCH --time=4:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2         # as many as batcher.num_workers
#SBATCH --requeue                 # a preempted job comes back
#SBATCH --signal=B:USR1@120       # two minutes before the limit, to this script (B:)
#SBATCH --open-mode=append        # a job that comes back goes on with its output
#SBATCH --output=slurm-%j.txt

run=runs/cartpole-0               # relative to where sbatch is called
asked=(algo=ppo env=CartPole seed=0 total_steps=1_000_000)

# A run that has a checkpoint is gone on with; one that has none begins.
if compgen -G "$run/checkpoints/step-*" >/dev/null; then
    rlx train resume="$run" total_steps=1_000_000 &
else
    rm -rf "$run"                 # what an attempt left that came to no checkpoint
    rlx train "${asked[@]}" run_dir="$run" &
fi
training=$!

# bash hears a signal at once only while it is in `wait`; hence the & above.
queue_again=no
trap 'queue_again=yes; kill -TERM $training' USR1    # the time limit, or a preemption's beginning
trap 'kill -TERM $training' TERM                     # scancel, scontrol requeue, a preemption's end

# Each trap interrupts `wait`: wait until rlx has saved and ended.
while kill -0 $training 2>/dev/null; do
    wait $training
done
wait $training
status=$?
if [ $queue_again = yes ] && [ $status = 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
