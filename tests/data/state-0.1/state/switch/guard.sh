#!/bin/sh
# The guard's own act: end the release's switch if it still runs, then run the prior system's switch.
#
#   guard.sh FORWARD UNIT COMMAND [ARGUMENT...]
#
# FORWARD is the record of the release's switch, UNIT its systemd unit or "-". Runs under wrapper.sh, whose
# `started` file is the mark by which the agent sees on its next start that the guard has acted.
set -u
forward=$1 unit=$2
shift 2

field() {
    sed -n "1s/.*$1=\\([^ ]*\\).*/\\1/p" "$forward/started" 2>/dev/null
}

# The process that the record names, and no later one with its number, nor what waits to be reaped of it.
runs() {
    [ -n "$pid" ] || return 1
    if read -r stat <"/proc/$pid/stat" 2>/dev/null; then
        # shellcheck disable=SC2086
        set -- ${stat##*) }
        [ "${20}" = "$start" ] && [ "$1" != Z ]
    else
        [ "$(LC_ALL=C ps -o lstart= -p "$pid" 2>/dev/null | tr -s ' ' '_')" = "$start" ]
    fi
}

# The wrapper was killed alone and its script goes on. The group's leader was the launcher, which left at once: one that
# lives is another group of the same number.
orphaned() {
    [ -n "$group" ] && ! kill -s 0 "$group" 2>/dev/null && kill -s 0 -- "-$group" 2>/dev/null
}

if [ "$unit" != - ]; then
    systemctl stop "$unit"
elif [ ! -e "$forward/exit" ]; then
    pid=$(field pid) group=$(field group) start=$(field start)
    if runs || orphaned; then
        echo "the switch of the release still runs: ending it"
        kill -s TERM -- "-$group"
        turns=0
        while { runs || orphaned; } && [ "$turns" -lt 100 ]; do
            turns=$((turns + 1))
            sleep 0.1 2>/dev/null || { sleep 1 && turns=$((turns + 9)); }
        done
        kill -s KILL -- "-$group" 2>/dev/null
    fi
fi
exec "$@"
