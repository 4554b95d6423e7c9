#!/bin/sh
# The guard's own act: end the release's switch if it still runs, then run the prior system's switch.
#
#   guard.sh FORWARD UNIT AGENT PROFILE CLOSURE COMMAND [ARGUMENT...]
#
# FORWARD is the record of the release's switch, UNIT its systemd unit or "-", CLOSURE the prior system. AGENT is the
# unit of the agent, when the release's own was to take over and did not become ready, or "-". Runs under wrapper.sh,
# whose `started` file is the mark by which the agent sees on its next start that the guard has acted.
# The prior system's pre-switch checks are overridden: they ask whether it is wise to leave what runs, and that is bad.
set -u
forward=$1 unit=$2 agent=$3 profile=$4 closure=$5
shift 5

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

# Nix may be what the release broke, and the host is back without it: the agent sets the profile once it runs.
point_profile() {
    if command -v timeout >/dev/null; then set -- timeout 60; else set --; fi
    "$@" nix-env --profile "$profile" --set "$closure" </dev/null || echo "the profile stays where it is"
}

# An agent that hangs in its start, or was given up, would stay as it is: no switch restarts the agent.
finish() {
    if [ "$agent" != - ]; then
        systemctl reset-failed "$agent" 2>/dev/null
        systemctl restart --no-block "$agent"
    fi
    exit "$1"
}

if [ "$agent" != - ]; then
    # shellcheck disable=SC2046
    echo "$agent was not ready in time:" $(systemctl show --property=ActiveState,Result,ExecMainStatus -- "$agent")
elif [ "$unit" != - ]; then
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
NIXOS_NO_CHECK=1
export NIXOS_NO_CHECK

# 0, 2, 3, 4 and 100 come after the boot entry.
go_back() {
    "$@"
    code=$?
    case $code in 0 | 2 | 3 | 4 | 100)
        point_profile
        finish "$code" ;;
    esac
}

# After anything else nobody knows whether the next boot is a good one, so at least its entry is written. Where that
# works, what kept the switch (a lock, held by a process that was dying) may be over; a lock that another holds, or a
# full disk, may let go of it later.
turns=0
while :; do
    go_back "$@"
    turns=$((turns + 1))
    if [ "${2:-}" = switch ] && "$1" boot; then
        go_back "$@"
        finish "$code"
    fi
    [ "$turns" -lt 30 ] || finish "$code"
    sleep 10
done
