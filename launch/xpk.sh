#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster through xpk; preempted and crashed workloads start again by themselves.
#
#   PROJECT=my-project ZONE=us-west4-a CLUSTER=my-cluster NAME=my-run TPU=v5litepod-16 SLICES=2 \
#   IMAGE=us-docker.pkg.dev/my-project/images/gptjax \
#   launch/xpk.sh experiments/chatgpt_mini.py --mesh.data 2 --mesh.fsdp 16 --batch_size 128
# The image is that of launch/Dockerfile; a file system that all pods share is attached at /shared: docs/launch/gke.md.
# DRY_RUN=1 prints the command instead.
set -euo pipefail

for name in PROJECT ZONE CLUSTER NAME TPU IMAGE; do
    if [ -z "${!name:-}" ]; then
        sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
        echo "$name is not set" >&2
        exit 2
    fi
done
if [ $# -eq 0 ]; then
    echo "no experiment file given" >&2
    exit 2
fi

# xpk restarts on exit codes 42 and 127 to 255 (kills and aborts); 1 is a Python error, 75 a preemption after a save.
# 2, 3 and 70 are not in the list: a restart would end in the same way.
launch=(xpk workload create
    --project "$PROJECT" --zone "$ZONE" --cluster "$CLUSTER" --workload "$NAME"
    --tpu-type "$TPU" --num-slices "${SLICES:-1}" --docker-image "$IMAGE"
    --max-restarts "${RESTART_LIMIT:-50}" --restart-on-exit-codes 1,75
    --termination-grace-period-seconds "${GRACE_SECONDS:-180}"
    --command "gptjax run $(printf '%q ' "$@") --workdir /shared/runs/$NAME")

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${launch[@]}"
    echo
else
    exec "${launch[@]}"
fi
