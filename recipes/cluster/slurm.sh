#!/bin/bash
# A training that outlives its time limit and preemptions: sbatch recipes/cluster/slurm.sh SCRIPT FLAGS..., as in
#
#   sbatch recipes/cluster/slurm.sh train_unconditional.py --config cifar10-colours --output_dir runs/colours
#
# Three minutes before the end Slurm signals this script, which passes it on; the training writes a checkpoint and ends,
# the job is queued again under its number, and goes on from there. So does a job whose node has failed.
#
#SBATCH --job-name=snowmelt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# Also when an administrator's PreemptParameters have send_user_signal. Preemption without it sends SIGTERM, which ends
# a training with a checkpoint too, and queues the job again by itself.
trap 'signalled=1; kill -USR1 $steps' USR1

export MASTER_HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-recipes/accelerate/two-nodes.yaml}

# One launcher on each node. It would end at SIGUSR1, so it has to ignore it; the signal goes to the processes that it started.
on_each_node='
    trap "pkill -USR1 -P \$launcher" USR1
    (
        trap "" USR1
        exec accelerate launch --config_file "$ACCELERATE_CONFIG" \
            --num_machines "$SLURM_JOB_NUM_NODES" --num_processes $((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE)) \
            --machine_rank "$SLURM_NODEID" --main_process_ip "$MASTER_HOST" --main_process_port "$MASTER_PORT" \
            "$@" --resume_from_checkpoint latest
    ) &
    launcher=$!
    while wait $launcher; status=$?; kill -0 $launcher 2> /dev/null; do :; done  # a signal ends `wait`, too
    exit $status
'
srun --kill-on-bad-exit=1 bash -c "$on_each_node" node "$@" &
steps=$!
while wait $steps; status=$?; kill -0 $steps 2> /dev/null; do :; done

if [ -n "$signalled" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
