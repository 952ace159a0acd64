#!/bin/bash
# One run with learners on several nodes, by srun and torchrun: sbatch scripts/slurm/several_nodes.sh
#
# srun starts one torchrun on each node, and each torchrun starts the ranks there. docs/scaling.md says what learner=ddp
# promises. Numbers are a rank's own: four ranks with batcher.envs_per_worker=8 make a batch four times as large.
#
#SBATCH --job-name=ppo-nodes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1       # one torchrun a node, whatever the number of ranks is
#SBATCH --cpus-per-task=4         # ranks_per_node times batcher.num_workers
#SBATCH --time=4:00:00
#SBATCH --requeue                 # a preempted job comes back
#SBATCH --signal=B:USR1@120       # two minutes before the limit, to this script (B:)
#SBATCH --open-mode=append        # a job that comes back goes on with its output
#SBATCH --output=slurm-%j.txt

ranks_per_node=2                  # with GPUs: --gpus-per-node=2 above, device=cuda below, one rank a GPU
run=runs/cartpole-nodes           # on a disk that all nodes see; relative to where sbatch is called
asked=(algo=ppo env=CartPole seed=0 total_steps=1_000_000 learner=ddp)

# A run that has a checkpoint is gone on with, by as many ranks; one that has none begins.
if compgen -G "$run/checkpoints/step-*" >/dev/null; then
    words=(resume="$run" total_steps=1_000_000)
else
    rm -rf "$run"                 # what an attempt left that came to no checkpoint
    words=("${asked[@]}" run_dir="$run")
fi

# This script runs on the first node: that is where all meet. The port is made of the job's number, since other jobs may
# have a learner on the same node.
meet="$(hostname):$((20000 + SLURM_JOB_ID % 20000))"
before="$(cat "$run/summary.json" 2>/dev/null)"
export OMP_NUM_THREADS=1          # else torchrun says that it sets this
# Where nodes have several networks: export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0

# --cpus-per-task again: since SLURM 22.05 srun does not take it over from above.
# --kill-on-bad-exit=0: the torchrun that ends first leaves the others the time to save; rlx ends all where a rank dies.
# --signals-to-handle: what torchrun hands on to its ranks; where a job is preempted, SLURM may send SIGUSR1 to them.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \
    torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$ranks_per_node" \
    --rdzv-backend=c10d --rdzv-endpoint="$meet" --rdzv-id="$SLURM_JOB_ID" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m rlx train "${words[@]}" &
training=$!

# bash hears a signal at once only while it is in `wait`; hence the & above. Before the time limit the ranks are told by
# scancel, past srun: an srun that gets SIGTERM kills them before they have saved. A scancel of the job and scontrol
# requeue send it to srun, too: then the run goes on from its newest checkpoint (checkpoint.minutes).
cancelled=no
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' USR1    # the time limit; without --batch, this script does not get it
trap 'cancelled=yes' TERM                            # scancel, scontrol requeue, a preemption's end

# Each trap interrupts `wait`: wait until all ranks have saved and ended.
while kill -0 $training 2>/dev/null; do
    wait $training
done
wait $training
status=$?
# What torchrun and srun return does not tell a run that was stopped from one that failed; the run itself does, unless it
# failed before it could write anything new.
if [ $cancelled = no ] && [ $status != 0 ] && [ "$(cat "$run/summary.json")" != "$before" ] &&
    grep -q '"status": "stopped"' "$run/summary.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
