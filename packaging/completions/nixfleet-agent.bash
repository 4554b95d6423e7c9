# bash completion for nixfleet-agent
_nixfleet_agent() {
    local cur prev command word
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD-1]}
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
            -*) ;;
            *) command=$word; break ;;
        esac
    done
    case $prev in
        --config|--trust-file|--ca-cert|--client-cert|--client-key|--bootstrap-token-file|--ssh-host-key-file|\
        --health-checks-file|--fleet|--manifest|--sig|--verify|--output)
            mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        --scenario)
            mapfile -t COMPREPLY < <(compgen -W "$(nixfleet-agent demo --list-scenarios 2>/dev/null |
                sed '1d;s/ .*//')" -- "$cur"; compgen -f -- "$cur"); return ;;
        --state-dir|--dir)
            mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
        --fault)
            mapfile -t COMPREPLY < <(compgen -W "kill partition slow wipe-cp forgetful-cp bad-signature stale wrong-closure" -- "$cur"); return ;;
        --until)
            mapfile -t COMPREPLY < <(compgen -W "90m 4h 1d" -- "$cur"); return ;;
    esac
    local common="--config --json --debug --help" words=
    case $command in
        "") words="run init status watch why check probe history diff rehearse log hold release run-now rollback boot-check quarantine queue enroll renew import-state verify support demo --version $common" ;;
        run) words="--control-plane-url --machine-id --trust-file --ca-cert --client-cert --client-key --bootstrap-token-file
            --state-dir --ssh-host-key-file --health-checks-file --manifest-freshness-window-secs
            --renewal-threshold-fraction $common" ;;
        status) words="--check $common" ;;
        watch) words="--turns $common" ;;
        init) words="--force --control-plane-url --machine-id --trust-file --ca-cert --client-cert --client-key
            --bootstrap-token-file --state-dir --ssh-host-key-file --health-checks-file $common" ;;
        check) words="--print-config --local --offline --strict $common" ;;
        history) words="--svg --list --verify --public-key --envelopes $common" ;;
        diff|rehearse) words=$common ;;
        log) words="--follow $common" ;;
        boot-check) words="--wait $common" ;;
        run-now) words="--reason --until $common" ;;
        hold) words="--reason --until $common" ;;
        rollback) words="retry give-up $common" ;;
        quarantine) words="list clear --all $common" ;;
        queue) words="list show retry drop --all $common" ;;
        enroll|renew) words="--force $common" ;;
        import-state) words="--from --dry-run $common" ;;
        verify) words="--fleet --manifest --sig --host --rollout --trust-file $common" ;;
        support) words="--output $common" ;;
        demo) words="--agents --keep --scenario --list-scenarios --fault --dir --port $common" ;;
        *) words=$common ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _nixfleet_agent nixfleet-agent
