#!/usr/bin/env bash
# Run a command again until it is done, by its exit code:
#
#   launch/restart.sh gptjax run experiments/chatgpt_mini.py --workdir /shared/runs/mini
#
#   0           done
#   2, 3, 70    a mistake, too large, a numerical fault: a restart would end in the same way, so stop with that code
#   75          preempted after a save: run again at once
#   others      a crash: run again after RESTART_WAIT seconds (10), until RESTART_LIMIT (5) of them came in a row, none
#               of which ran for RESTART_RESET seconds (600)
#
# SIGTERM is passed on; then the command's exit code is this script's, whatever it is: the machine is going away, and
# whoever gave it starts the script again. Ctrl-C reaches the command by itself, and ends the loop too. With
# RESTART_RESULT=FILE the last code is also written to that file.
set -u

if [ $# -eq 0 ]; then
    sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi

child= stopping= crashes=0
trap 'stopping=1; [ -n "$child" ] && kill -TERM "$child" 2>/dev/null' TERM
trap 'stopping=1' INT # a terminal sends it to the command as well

finish() {
    [ -n "${RESTART_RESULT:-}" ] && echo "$1" >"$RESTART_RESULT"
    exit "$1"
}

while true; do
    began=$SECONDS
    "$@" &
    child=$!
    wait "$child"
    code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
        wait "$child"
        code=$?
    done
    child=
    [ -n "$stopping" ] && finish "$code"
    case $code in
    0 | 2 | 3 | 70) finish "$code" ;;
    75)
        crashes=0
        echo "restart: preempted, running again" >&2
        ;;
    *)
        [ $((SECONDS - began)) -ge "${RESTART_RESET:-600}" ] && crashes=0
        crashes=$((crashes + 1))
        if [ "$crashes" -ge "${RESTART_LIMIT:-5}" ]; then
            echo "restart: exit code $code, $crashes crashes in a row: giving up" >&2
            finish "$code"
        fi
        echo "restart: exit code $code, running again in ${RESTART_WAIT:-10} s" >&2
        sleep "${RESTART_WAIT:-10}" &
        wait $! # a signal ends this wait at once
        [ -n "$stopping" ] && finish "$code"
        ;;
    esac
done
