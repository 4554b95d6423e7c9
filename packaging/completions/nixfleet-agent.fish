# fish completion for nixfleet-agent
function __nixfleet_agent_told
    # Whether all of these words, command and action, stand on the line already.
    set -l words (commandline -opc)
    for word in $argv
        contains -- $word $words; or return 1
    end
end
function __nixfleet_agent_scenarios
    nixfleet-agent demo --list-scenarios 2>/dev/null | string replace -r '^(\S+) +' '$1\t' | tail -n +2
end

set -l commands run status watch why check probe history log hold release run-now rollback quarantine queue enroll renew verify support demo
set -l alone "not __fish_seen_subcommand_from $commands"

complete -c nixfleet-agent -f
complete -c nixfleet-agent -l config -r -F -d 'configuration file'
complete -c nixfleet-agent -l json -d 'print JSON, for scripts'
complete -c nixfleet-agent -l debug -d 'a traceback with an error'
complete -c nixfleet-agent -l help -d 'help'

complete -c nixfleet-agent -n $alone -l version -d 'the version'
complete -c nixfleet-agent -n $alone -a run -d 'the agent itself (for the init system)'
complete -c nixfleet-agent -n $alone -a status -d 'what the running agent knows and does'
complete -c nixfleet-agent -n $alone -a watch -d 'this host live, as status shows it'
complete -c nixfleet-agent -n $alone -a why -d 'what this host waits for, and what would unblock it'
complete -c nixfleet-agent -n $alone -a check -d 'look at configuration, keys, certificate, probes, Nix and reachability'
complete -c nixfleet-agent -n $alone -a probe -d 'run the declared health probes once'
complete -c nixfleet-agent -n $alone -a history -d 'the events of a rollout on this host'
complete -c nixfleet-agent -n $alone -a log -d 'what a switch has said, also while it runs'
complete -c nixfleet-agent -n $alone -a hold -d 'start no new activation for now'
complete -c nixfleet-agent -n $alone -a release -d 'end a hold'
complete -c nixfleet-agent -n $alone -a run-now -d 'let the next activation begin outside the maintenance windows'
complete -c nixfleet-agent -n $alone -a rollback -d 'retry or give up a rollback that keeps failing'
complete -c nixfleet-agent -n $alone -a quarantine -d 'closures that this host refuses'
complete -c nixfleet-agent -n $alone -a queue -d 'events that the control plane has not taken'
complete -c nixfleet-agent -n $alone -a enroll -d 'get the certificate of this host'
complete -c nixfleet-agent -n $alone -a renew -d 'renew the certificate of this host'
complete -c nixfleet-agent -n $alone -a verify -d 'verify a signed fleet or manifest offline'
complete -c nixfleet-agent -n $alone -a support -d 'collect what a bug report needs'
complete -c nixfleet-agent -n $alone -a demo -d 'a whole fleet on this machine'

complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l control-plane-url -x -d 'https address of the control plane'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l machine-id -x -d 'name of this host in the fleet'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l trust-file -r -F -d 'keys that releases must be signed with'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l ca-cert -r -F -d 'CA of the control plane'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l client-cert -r -F -d 'certificate of this host'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l client-key -r -F -d 'its private key'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l bootstrap-token-file -r -F -d 'one-time token for the first certificate'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l state-dir -r -F -d 'where the agent keeps its state'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l ssh-host-key-file -r -F -d 'SSH Ed25519 key of the host'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l health-checks-file -r -F -d 'health probes of the host'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l manifest-freshness-window-secs -x -d 'how old a signed release may be'
complete -c nixfleet-agent -n '__nixfleet_agent_told run' -l renewal-threshold-fraction -x -d 'renew below this part of the life of the certificate'

complete -c nixfleet-agent -n '__nixfleet_agent_told status' -l check -d 'one line for monitoring'
complete -c nixfleet-agent -n '__nixfleet_agent_told watch' -l turns -x -d 'end after so many looks'
complete -c nixfleet-agent -n '__nixfleet_agent_told check' -l print-config -d 'each key, its value, and where it comes from'
complete -c nixfleet-agent -n '__nixfleet_agent_told check' -l offline -d 'do not call the control plane'
complete -c nixfleet-agent -n '__nixfleet_agent_told history' -l svg -r -F -d 'draw the rollout'
complete -c nixfleet-agent -n '__nixfleet_agent_told history' -l list -d 'one line for each rollout'
complete -c nixfleet-agent -n '__nixfleet_agent_told history' -l verify -r -F -d 'check copies of events'
complete -c nixfleet-agent -n '__nixfleet_agent_told log' -l follow -d 'show what comes as it comes'
complete -c nixfleet-agent -n '__nixfleet_agent_told run-now' -l reason -x -d 'what the next operator should know'
complete -c nixfleet-agent -n '__nixfleet_agent_told run-now' -l until -x -a '30m 1h 4h' -d 'a length or a time'
complete -c nixfleet-agent -n '__nixfleet_agent_told hold' -l reason -x -d 'what the next operator should know'
complete -c nixfleet-agent -n '__nixfleet_agent_told hold' -l until -x -a '90m 4h 1d' -d 'a length or a time'
complete -c nixfleet-agent -n '__nixfleet_agent_told rollback' -a 'retry give-up'
complete -c nixfleet-agent -n '__nixfleet_agent_told quarantine' -a 'list clear'
complete -c nixfleet-agent -n '__nixfleet_agent_told quarantine clear' -l all -d 'everything'
complete -c nixfleet-agent -n '__nixfleet_agent_told queue' -a 'list show retry drop'
complete -c nixfleet-agent -n '__nixfleet_agent_told queue' -l all -d 'all of them'
complete -c nixfleet-agent -n '__nixfleet_agent_told enroll' -l force -d 'use the token although there is a valid certificate'
complete -c nixfleet-agent -n '__nixfleet_agent_told renew' -l force -d 'renew although it is not due'
complete -c nixfleet-agent -n '__nixfleet_agent_told verify' -l fleet -r -F -d 'a fleet.resolved'
complete -c nixfleet-agent -n '__nixfleet_agent_told verify' -l manifest -r -F -d 'a rollout manifest'
complete -c nixfleet-agent -n '__nixfleet_agent_told verify' -l sig -r -F -d 'its signature'
complete -c nixfleet-agent -n '__nixfleet_agent_told verify' -l host -x -d 'require an entry for this host'
complete -c nixfleet-agent -n '__nixfleet_agent_told verify' -l rollout -x -d 'the rollout id it must be for'
complete -c nixfleet-agent -n '__nixfleet_agent_told verify' -l trust-file -r -F -d 'keys that it must be signed with'
complete -c nixfleet-agent -n '__nixfleet_agent_told support' -l output -r -F -d 'the archive'
complete -c nixfleet-agent -n '__nixfleet_agent_told demo' -l agents -x -d 'how many hosts'
complete -c nixfleet-agent -n '__nixfleet_agent_told demo' -l keep -d 'leave everything running'
complete -c nixfleet-agent -n '__nixfleet_agent_told demo' -l scenario -r -F -a '(__nixfleet_agent_scenarios)' -d 'what is told'
complete -c nixfleet-agent -n '__nixfleet_agent_told demo' -l list-scenarios -d 'the names that --scenario knows'
complete -c nixfleet-agent -n '__nixfleet_agent_told demo' -l fault -x -a 'kill partition slow wipe-cp forgetful-cp bad-signature stale wrong-closure' -d 'what goes wrong'
complete -c nixfleet-agent -n '__nixfleet_agent_told demo' -l dir -x -a '(__fish_complete_directories)' -d 'an empty or new folder'
complete -c nixfleet-agent -n '__nixfleet_agent_told demo' -l port -x -d 'of the control plane'
