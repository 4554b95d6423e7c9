#!/bin/sh
# Runs one command of a switch and records it, needing neither the agent nor Python.
#
#   wrapper.sh detach RECORD DELAY COMMAND [ARGUMENT...]   the same in the background, at once
#   wrapper.sh run    RECORD DELAY COMMAND [ARGUMENT...]
#
# RECORD is a folder that the agent prepared, with space reserved in the *.next files so that a full disk
# can't lose what happened:
#   waiting   who waits, while DELAY seconds pass (only when DELAY is not 0)
#   started   who runs it; made by link(2), which fails when the agent has withdrawn the record by making it first
#   output    what the command said last, with output.1 and output.2 before it
#   exit      its exit code; 128 + n for a signal
set -u
umask 022
mode=$1 record=$2 delay=$3
shift 3

if [ "$mode" = detach ]; then
    /bin/sh "$0" run "$record" "$delay" "$@" </dev/null >/dev/null 2>&1 &
    exit 0
fi
cd / || exit 1

# One line that names this process beyond reuse of its number: pid, process group, start time, boot.
identity() {
    if read -r stat <"/proc/$$/stat" 2>/dev/null; then
        # The second field is the program's name and may hold anything; what follows its last parenthesis is fixed.
        # shellcheck disable=SC2086
        set -- ${stat##*) }
        echo "pid=$$ group=$3 start=${20} boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
    else
        echo "pid=$$ group=$(ps -o pgid= -p $$ | tr -d ' ')" \
            "start=$(LC_ALL=C ps -o lstart= -p $$ | tr -s ' ' '_')" "boot=$(sysctl -n kern.bootsessionuuid)"
    fi
}

# Fill the space reserved for file $1 with the line $2; the rename follows.
place() {
    printf '%s\n' "$2" | dd of="$record/$1.next" conv=notrunc 2>/dev/null
}

# Keep what the command says, as it says it, and of a flood the end: each file ends after 8192 reads of at most 128
# bytes, so that they hold at least the last 8192 lines, or the last MiB of longer ones, and never more than 3 MiB.
keep() {
    while dd bs=128 count=8192 of="$record/output" 2>/dev/null && [ -s "$record/output" ]; do
        [ -e "$record/output.1" ] && mv -f "$record/output.1" "$record/output.2"
        mv -f "$record/output" "$record/output.1"
    done
    # The disk is full, or all is said: a command whose output is no longer read would die of it.
    cat >/dev/null
    mv -f "$record/drained.next" "$record/drained"
}

# Something that the command left running may hold its output open for ever: wait a second for the end of it.
drained() {
    turns=0
    while [ ! -e "$record/drained" ] && [ "$turns" -lt 20 ]; do
        turns=$((turns + 1))
        sleep 0.05 2>/dev/null || { sleep 1 && turns=$((turns + 19)); }
    done
}

if [ "$delay" != 0 ]; then
    place waiting "$(identity)"
    mv -f "$record/waiting.next" "$record/waiting"
    sleep "$delay"
fi
place started "$(identity)"
ln "$record/started.next" "$record/started" 2>/dev/null || exit 0

# A shell starts what it puts into the background with SIGINT and SIGQUIT ignored, systemd a unit with SIGPIPE, and all
# units that the command starts by itself would inherit that. Only env can undo it (coreutils 8.31).
if env --default-signal true 2>/dev/null; then
    set -- env --default-signal "$@"
fi
keep <"$record/pipe" &
exec 3>"$record/pipe"
rm -f "$record/pipe"
"$@" </dev/null >&3 2>&1 3>&-
code=$?
exec 3>&-

# Only a failure needs its words; a success is told at once.
[ "$code" -eq 0 ] || drained
place exit "$code"
mv -f "$record/exit.next" "$record/exit"
[ "$code" -ne 0 ] || drained
exit "$code"
