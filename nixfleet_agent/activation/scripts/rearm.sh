#!/bin/sh
# Arms the guard of a release's own agent anew: a reboot has ended its wait, and the agent of the system that was booted
# has to be ready in time all the same. Run once in a boot, before the agent, and needs neither it nor Python.
#
#   rearm.sh [CURRENT]   CURRENT is the link to the system that runs
#
# It lies beside the records, as of the agent that armed the guard. Of a guard that was not disarmed, the file `hand-over`
# holds its seconds and its command, quoted for a shell.
set -u
folder=$(cd "${0%/*}" && pwd) current=${1:-/run/current-system}
boot=$(cat /proc/sys/kernel/random/boot_id) || exit 1
running=$(readlink "$current") || exit 1

field() {
    sed -n "s/^ *\"$1\": \"\\(.*\\)\".*/\\1/p" "$record/intent.json"
}

newest=
for record in "$folder"/*-guard-*; do
    if [ -e "$record/hand-over" ] && [ ! -e "$record/started" ]; then
        newest=$record
    fi
done
record=$newest
[ -n "$record" ] || exit 0
# One of this boot waits by itself; and a boot into another system has taken the release away already.
case $(field boot) in "$boot"*) exit 0 ;; esac
[ "$(field running)" = "${running##*/}" ] || exit 0

# From here on the agent takes it for one that waits in this boot, and disarms it once it is ready. Not armed without
# that: nobody could disarm it.
sed "s/^\\( *\"boot\": \"\\)[^\"]*/\\1$boot/" "$record/intent.json" >"$record/intent.next" || exit 1
mv -f "$record/intent.next" "$record/intent.json" || exit 1
rm -f "$record/waiting"

eval "set -- $(cat "$record/hand-over")"
seconds=$1
shift
echo "the host is taken back unless its agent is ready within $seconds s"
exec systemd-run --unit=nixfleet-guard --quiet --no-ask-password --property=TimeoutStopSec=10 --setenv=PATH \
    --on-active="${seconds}s" --timer-property=AccuracySec=1s -- /bin/sh "$folder/wrapper.sh" run "$record" 0 "$@"
