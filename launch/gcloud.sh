#!/usr/bin/env bash
# Train on a Cloud TPU slice through a queued resource; a preempted slice is asked for again.
#
#   PROJECT=my-project ZONE=us-west4-a NAME=my-run ACCELERATOR=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite \
#   NFS=10.0.0.2:/share launch/gcloud.sh experiments/chatgpt_mini.py --mesh.fsdp 16
#
# Run it in the root of the repository on a machine that stays up (a small VM, in tmux). NFS is a Filestore share that
# every worker mounts at /shared: the run's folder is /shared/runs/NAME. SPOT= (empty) asks for a slice that is not
# preempted. The slice is deleted when the run is done and when a restart would not help; its exit code says which.
set -euo pipefail

for name in PROJECT ZONE NAME ACCELERATOR RUNTIME NFS; do
    if [ -z "${!name:-}" ]; then
        sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
        echo "$name is not set" >&2
        exit 2
    fi
done
if [ $# -eq 0 ]; then
    echo "no experiment file given" >&2
    exit 2
fi
spot=${SPOT---spot}
poll=${POLL_SECONDS:-60}
where=(--project "$PROJECT" --zone "$ZONE")
run="/shared/runs/$NAME"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
command="gptjax run $(printf '%q ' "$@") --workdir $run"

state() { # of the queued resource; ABSENT when there is none, UNKNOWN when that could not be found out
    if gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)' \
        2>"$work/errors"; then
        return
    elif grep -q NOT_FOUND "$work/errors"; then
        echo ABSENT
    else
        cat "$work/errors" >&2
        echo UNKNOWN
    fi
}

remove() {
    gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet || true
}

ask() {
    # shellcheck disable=SC2086 # an empty $spot is no argument
    gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id "$NAME" \
        --accelerator-type "$ACCELERATOR" --runtime-version "$RUNTIME" $spot
}

on() { # on WORKER COMMAND: run a command on one worker, or on all
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker "$1" --command "$2"
}

prepare() {
    tar czf "$work/gptjax-$NAME.tgz" --exclude=./runs --exclude=./.venv --exclude=./.git . &&
        gcloud compute tpus tpu-vm scp "$work/gptjax-$NAME.tgz" "$NAME": "${where[@]}" --worker all &&
        on all "set -e
        sudo apt-get install -y nfs-common
        sudo mkdir -p /shared && (mountpoint -q /shared || sudo mount -t nfs $NFS /shared)
        mkdir -p code $run.exit && tar xzf gptjax-$NAME.tgz -C code && rm -f $run.exit/*
        python3 -m pip install -q --user uv # the Python of the image is older than gptjax takes
        ~/.local/bin/uv venv -q --allow-existing --python 3.12 venv
        ~/.local/bin/uv pip install -q --python venv './code[gcs]' 'jax[tpu]>=0.10,<0.11'"
}

start() { # detached, so that a lost connection does not stop it; each worker writes its exit code at the end
    on all "cd code && PATH=\$HOME/venv/bin:\$PATH RESTART_RESULT=$run.exit/\$(hostname) \
        setsid nohup launch/restart.sh $command > ~/gptjax.log 2>&1 < /dev/null &"
}

workers() {
    gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format='value(networkEndpoints[].ipAddress)' |
        tr ';,' '\n\n' | grep -c .
}

verdict() { # of the exit codes of all workers: a code that forbids a restart, else 0 if all are done, else nothing
    local codes count
    codes=$(on 0 "cat $run.exit/* 2>/dev/null" 2>/dev/null) || return 0
    for code in 2 3 70; do
        grep -qx "$code" <<<"$codes" && echo "$code" && return 0
    done
    count=$(workers) || return 0
    [ "$(grep -c . <<<"$codes")" -lt "$count" ] && return 0
    grep -qvx 0 <<<"$codes" && echo again || echo 0
}

started=
while true; do
    now=$(state)
    case $now in
    ABSENT)
        started=
        ask
        ;;
    ACTIVE)
        if [ -z "$started" ]; then
            prepare && start && started=1 # a slice may go while it is prepared: then the state says so
        else
            code=$(verdict)
            case $code in
            '') ;;
            again) started= ;;
            *)
                remove
                echo "exit code $code; the run is in $run" >&2
                exit "$code"
                ;;
            esac
        fi
        ;;
    SUSPENDED | FAILED)
        echo "the slice is $now: asking for another" >&2
        remove
        started=
        continue
        ;;
    *) echo "the slice is $now" >&2 ;; # WAITING_FOR_RESOURCES, PROVISIONING, DELETING, UNKNOWN, ...
    esac
    sleep "$poll"
done
