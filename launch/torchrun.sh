#!/usr/bin/env bash
# torchrun over several nodes: run the same command on every node, at about the same time.
#   MASTER=node001 NNODES=4 launch/torchrun.sh run.dir=/shared/runs/base +experiment=simmim_base data.shards=/data/in1k/train
# MASTER is the node where the ranks meet (a name or address that the others can reach), NNODES the number of nodes. Optional:
# NPROC ranks per node (default: one per GPU), MASTER_PORT (29500), NODE_RANK (0 on MASTER; detected if it is not set).
# If a rank dies, all ranks are restarted from the newest checkpoint, up to three times.
# Unless OMP_NUM_THREADS is set, every rank gets an equal part of the node's cores.
# Exit codes: 0 finished, 1 failed, 2 usage error, 75 stopped by a signal after saving (rerun the command to resume), 76
# stopped by a file STOP that a user created in run.dir (do not restart it automatically), 130 a second Ctrl-C.
set -uo pipefail

fail() { echo "torchrun.sh: $1" >&2 && exit 2; }
[ -n "${MASTER:-}" ] || fail "set MASTER to the name or address of the node where the ranks meet"
[[ "${NNODES:-}" =~ ^[1-9][0-9]*$ ]] || fail "set NNODES to the number of nodes, not '${NNODES:-}'"
[[ "${NPROC:-gpu}" =~ ^([1-9][0-9]*|gpu|cpu|auto)$ ]] || fail "set NPROC to the ranks per node, or unset it, not '$NPROC'"
run_dir=
for argument in "$@"; do [[ "$argument" != run.dir=* ]] || run_dir=${argument#run.dir=}; done
[ -n "$run_dir" ] || fail "set run.dir=DIR, on a file system that all nodes see"
# torchrun would retry an invalid command line three times, and end with 1.
swinv2-train "$@" launch.dry_run=true >/dev/null || exit

node=${NODE_RANK:-${JOB_COMPLETION_INDEX:-}} # the latter in a Kubernetes job
meet=(--rdzv-backend=c10d --rdzv-id=swinv2 --rdzv-endpoint="$MASTER:${MASTER_PORT:-29500}")
[ -z "$node" ] || meet+=(--rdzv-conf="is_host=$([ "$node" = 0 ] && echo true || echo false)")
ranks=${NPROC:-gpu}
[ "$ranks" != gpu ] || ranks=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
if [ -z "${OMP_NUM_THREADS:-}" ] && [[ "$ranks" =~ ^[1-9][0-9]*$ ]]; then
    unset OMP_NUM_THREADS # nproc would respect it
    threads=$(($(nproc) / ranks))
    export OMP_NUM_THREADS=$((threads > 0 ? threads : 1)) # torchrun would set it to 1
fi

stop_file=$run_dir/STOP
# Remove an old STOP file here: only one node may do it, and not on a restart. The variable keeps the ranks from removing it.
[ "${node:-0}" != 0 ] || rm -f "$stop_file"
export SWINV2_KEEP_STOP=1
status_file=$run_dir/status.json
written() { stat -c %y "$status_file" 2>/dev/null; }
before=$(written)

# torchrun would kill its ranks 30 seconds after a signal. This file lets them finish the step and save, however long that
# takes. Its content distinguishes it from a file that a user created, which is not changed.
# shellcheck disable=SC2329 # called by the traps
stop() { [ -e "$stop_file" ] || { mkdir -p "$run_dir" && echo signal >"$stop_file"; }; }
torchrun=
interrupts=0
# shellcheck disable=SC2329
interrupt() {
    interrupts=$((interrupts + 1))
    stop
    # torchrun forwards it; ranks that are already stopping end immediately.
    [ "$interrupts" -eq 1 ] || [ -z "$torchrun" ] || kill -INT "$torchrun" 2>/dev/null
}
trap stop TERM HUP USR1 USR2
trap interrupt INT
# Use a separate session, because Ctrl-C and the end of a terminal signal the entire process group. A background job is not
# a group leader, so setsid itself becomes torchrun, with the same process id.
setsid torchrun --nnodes="$NNODES" --nproc-per-node="${NPROC:-gpu}" --max-restarts=3 "${meet[@]}" \
    --no-python swinv2-train "$@" &
torchrun=$!
while kill -0 "$torchrun" 2>/dev/null; do wait "$torchrun"; done # a trapped signal interrupts a `wait`
wait "$torchrun"
code=$?
[ "$interrupts" -lt 2 ] || exit 130

# torchrun exits with 1 regardless of its ranks' exit codes; read the result from the run. Rank 0 may be on a slower node.
if [ "$code" -ne 0 ]; then
    for _ in {1..30}; do
        status=$(cat "$status_file" 2>/dev/null)
        [[ "$status" == *'"running"'* && "$(written)" != "$before" ]] || break
        sleep 1
    done
    if [[ "$status" == *'"stopped"'* && "$(written)" != "$before" ]]; then
        [ -e "$stop_file" ] && [ "$(cat "$stop_file")" != signal ] && exit 76
        exit 75
    fi
fi
exit "$code"
