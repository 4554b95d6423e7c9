#!/bin/sh
# Stands in for NixOS's switch-to-configuration: the same steps in the same order, words and exit codes, for a host that
# is a folder. What it changes is named by the environment, so that many hosts share one closure:
#
#   SWITCH_LOG   every call, as "<action> <closure>"          SWITCH_CURRENT_SYSTEM  the link to what runs
#   SWITCH_LOCK  the lock file                                SWITCH_BOOTLOADER      the closure that boots next
#   SWITCH_UNITS one file per active unit: its definition     SWITCH_BOOT_EXIT       the bootloader step fails so
#
# A closure is configured by the settings below, by its units in etc/systemd/system (a line `Fails=start`, `dependency`,
# `user` or `systemctl` has one fail that way, `X-RestartIfChanged=false` keeps it running, with `X-StopIfChanged=false` it
# is restarted in one step and with `X-ReloadIfChanged=true` reloaded), its `switch-inhibitors` and its
# `init-interface-version`.
flavour=ng
# What a closure is set up with is put in below, and replaces these.
# shellcheck disable=SC2317
pre_switch_checks() { :; }
bootloader() { :; }
daemon_reload() { :; }
#@settings@

self=${0%/bin/*}
system=$self
store_root=${0%/nix/store/*}
self=${self##*/}
action=${1:-}
exit_code=0
echo "$action $self" >>"$SWITCH_LOG"

say() {
    echo "$*" >&2
}

# The Perl script's words, or those of the Rust program.
in_words() {
    if [ "$flavour" = perl ]; then say "$1"; else say "$2"; fi
}

# Points the link at closure $1; activations call it.
# shellcheck disable=SC2317
flip() {
    ln -s "/nix/store/$1" "$SWITCH_CURRENT_SYSTEM.$$" && mv -T "$SWITCH_CURRENT_SYSTEM.$$" "$SWITCH_CURRENT_SYSTEM"
}

# The running system's file $1, where it has one.
running() {
    running_system=$(readlink "$SWITCH_CURRENT_SYSTEM" 2>/dev/null) || return 1
    [ -e "$store_root/nix/store/${running_system##*/}/$1" ] && echo "$store_root/nix/store/${running_system##*/}/$1"
}

# One "key value" per line of a flat JSON object of strings.
pairs() {
    sed -e 's/[{}]//g' -e 's/,/\n/g' "$1" | sed -n 's/^[[:space:]]*"\([^"]*\)"[[:space:]]*:[[:space:]]*"\([^"]*\)".*/\1 \2/p'
}

# Keys that both systems have, with different values. A new default boot entry replaces nothing that runs.
switch_inhibitors() {
    if [ "$flavour" = ng ] && [ "$action" = dry-activate ]; then
        say "Not checking switch inhibitors (action = $action)"
        return 0
    fi
    [ "$action" != boot ] && [ -e "$system/switch-inhibitors" ] && old=$(running switch-inhibitors) || return 0
    changed=$(pairs "$old" | while read -r key was; do
        pairs "$system/switch-inhibitors" | while read -r coming is; do
            [ "$key" != "$coming" ] || [ "$was" = "$is" ] || echo "$key : $was -> $is"
        done
    done)
    [ -n "$changed" ] || return 0
    say "There are changes to critical components of the system:"
    say ""
    say "$changed"
    say ""
    say "Switching into this system is not recommended."
    refuse switchInhibitors
}

# One pre-switch check says no.
refuse() {
    say "Pre-switch check '$1' failed"
    [ "$flavour" = perl ] || say "Pre-switch checks failed"
    exit 1
}

install_bootloader() {
    if [ "${SWITCH_BOOT_EXIT:-0}" != 0 ]; then
        say "No space left on device"
        [ "$flavour" = perl ] || say "Failed to install bootloader"
        exit "$SWITCH_BOOT_EXIT"
    fi
    bootloader
    echo "$self" >"$SWITCH_BOOTLOADER"
}

# The units of $1, as the script lists them.
listed() {
    echo "$1" | sed -e 's/^ //' -e 's/ /, /g'
}

# What the new system takes away or changes, and what it must not.
plan_units() {
    stops='' skips='' starts='' restarts='' reloads=''
    for unit in "$SWITCH_UNITS"/*; do
        name=${unit##*/}
        if [ ! -e "$unit" ] || cmp -s "$unit" "$system/etc/systemd/system/$name"; then continue; fi
        if [ -e "$system/etc/systemd/system/$name" ] && grep -q '^X-RestartIfChanged=false' "$unit"; then
            skips="$skips $name"
        elif grep -qs '^X-ReloadIfChanged=true' "$system/etc/systemd/system/$name"; then
            reloads="$reloads $name"
        elif grep -qs '^X-StopIfChanged=false' "$system/etc/systemd/system/$name"; then
            restarts="$restarts $name"
        else
            stops="$stops $name"
        fi
    done
    for unit in "$system"/etc/systemd/system/*.service; do
        [ ! -e "$unit" ] || case " $skips $reloads $restarts " in *" ${unit##*/} "*) ;; *)
            cmp -s "$unit" "$SWITCH_UNITS/${unit##*/}" || starts="$starts ${unit##*/}" ;;
        esac
    done
}

start_unit() {
    case $(sed -n 's/^Fails=//p' "$system/etc/systemd/system/$1") in
    start)
        failed="$failed $1"
        in_words "Job for $1 failed because the control process exited with error code." "Failed to start $1" ;;
    dependency)
        in_words "A dependency job for $1 failed. See 'journalctl -xe' for details." "Failed to start $1" ;;
    user)
        say "warning: the following user units failed: $1"
        say "warning: user activation for alice failed" ;;
    systemctl)
        say "Too few arguments." ;;
    *)
        cp "$system/etc/systemd/system/$1" "$SWITCH_UNITS/$1"
        return ;;
    esac
    exit_code=4
}

# The activation: what a closure does in its own way; the link is flipped at its end.
activate() {
    :
#@activate@
}

main() {
    case $action in
    switch | boot | test | dry-activate | check) ;;
    *)
        say "Usage: switch-to-configuration [check|switch|boot|test|dry-activate]"
        exit 1 ;;
    esac
    if [ "${NIXOS_NO_CHECK:-}" != 1 ]; then
        switch_inhibitors
        pre_switch_checks
    fi
    case $action in
    check) exit 0 ;;
    switch | boot) install_bootloader ;;
    esac
    [ "$action" != boot ] || exit 0

    was=$(running init-interface-version) || was=/dev/null
    if [ -e "$system/init-interface-version" ] && ! cmp -s "$was" "$system/init-interface-version"; then
        say "Warning: the new NixOS configuration has an 'init' that is incompatible with the current configuration."
        say "The new configuration won't take effect until you reboot the system."
        exit 100
    fi
    plan_units
    if [ "$action" = dry-activate ]; then
        [ -z "$stops" ] || say "would stop the following units: $(listed "$stops")"
        [ -z "$skips" ] || say "would NOT stop the following changed units: $(listed "$skips")"
        say "would activate the configuration..."
        [ -z "$reloads" ] || say "would reload the following units: $(listed "$reloads")"
        [ -z "$restarts" ] || say "would restart the following units: $(listed "$restarts")"
        [ -z "$starts" ] || say "would start the following units: $(listed "$starts")"
        exit 0
    fi
    [ -z "$stops" ] || say "stopping the following units: $(listed "$stops")"
    for name in $stops; do rm -f "$SWITCH_UNITS/$name"; done
    [ -z "$skips" ] || say "NOT restarting the following changed units: $(listed "$skips")"
    [ -z "$stops$starts$restarts$reloads" ] || say "activating the configuration..."
    if ! activate; then
        say "Failed to run activate script"
        exit_code=2
    fi
    daemon_reload || exit_code=3
    failed=''
    [ -z "$reloads" ] || say "reloading the following units: $(listed "$reloads")"
    [ -z "$restarts" ] || say "restarting the following units: $(listed "$restarts")"
    for name in $reloads $restarts; do start_unit "$name"; done
    [ -z "$starts" ] || say "starting the following units: $(listed "$starts")"
    for name in $starts; do start_unit "$name"; done
    [ -z "$failed" ] || say "warning: the following units failed: $(listed "$failed")"
    exit "$exit_code"
}

exec 9>>"$SWITCH_LOCK"
if ! flock --nonblock 9; then
    in_words "Could not acquire lock - Resource temporarily unavailable at $0 line 74." "Could not acquire lock"
    exit 11
fi
# The lock is this shell's alone: what an activation leaves running must not hold it.
main 9>&-
