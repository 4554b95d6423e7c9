# NixOS module: the options of the Rust agent's module, so that a fleet can swap this agent in.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  cfg = config.services.nixfleet-agent;
  inherit (lib) mkOption types;

  # What the fleet's own module declares (nixfleet.trust), where it is imported; it is not declared here a second time.
  trust = config.nixfleet.trust or null;
  key = public: if public == null then null else { algorithm = "ed25519"; inherit public; };
  orgRootKey = trust.orgRootKey or { };
  trustFile = pkgs.writers.writeJSON "trust.json" (
    {
      schemaVersion = 1;
      ciReleaseKey = trust.ciReleaseKey or { };
      cacheKeys = trust.cacheKeys or [ ];
      orgRootKey = {
        current = key (orgRootKey.current or null);
        previous = key (orgRootKey.previous or null);
        rejectBefore = orgRootKey.rejectBefore or null;
      };
    }
    // lib.optionalAttrs (trust.rootCAPem or null != null) { rootCaPem = trust.rootCAPem; }
    // lib.optionalAttrs (trust.issuanceCAPems or [ ] != [ ]) { issuanceCaPems = trust.issuanceCAPems; }
  );

  generated = (pkgs.formats.toml { }).generate "agent.toml" (
    cfg.settings
    // lib.filterAttrs (_: value: value != null) {
      control_plane_url = cfg.controlPlaneUrl;
      machine_id = cfg.machineId;
      # A path of the flake goes into the store; a string names a place on the host.
      trust_file = "${cfg.trustFile}";
      manifest_freshness_window_secs = cfg.manifestFreshnessWindowSecs;
      renewal_threshold_fraction = cfg.renewalThresholdFraction;
      ca_cert = cfg.tls.caCert;
      client_cert = cfg.tls.clientCert;
      client_key = cfg.tls.clientKey;
      bootstrap_token_file = cfg.bootstrapTokenFile;
      state_dir = cfg.stateDir;
      ssh_host_key_file = cfg.sshHostKeyFile;
    }
  );

  healthChecks = pkgs.writers.writeJSON "health-checks.json" cfg.effectiveHealthChecks;
  hasHealthChecks = cfg.effectiveHealthChecks != { };

  # One file for the service and for the commands that an operator runs. It is built only when the agent that will read
  # it finds no mistake: an unsafe address, a fraction of 1.5, a key or a kind of probe that it does not know.
  settingsFile =
    if !cfg.checkConfig then
      generated
    else
      pkgs.runCommand "agent.toml" { preferLocalBuild = true; } (
        lib.concatStringsSep " " (
          [ "${cfg.package}/bin/nixfleet-agent check --offline --strict --config ${generated}" ]
          ++ lib.optional hasHealthChecks "--health-checks-file ${healthChecks}"
          ++ lib.optional (trust != null) "--trust-file ${trustFile}"
        )
        + "\ncp ${generated} $out\n"
      );

  # What older modules of the fleet had; a definition is an error at evaluation that says what to write.
  gone = name: lib.mkRemovedOptionModule [ "services" "nixfleet-agent" name ];
in
{
  imports = [
    (gone "pollInterval" "The agent is told at once when it is its turn. How often it asks by itself: services.nixfleet-agent.settings.tuning.manifest_poll_interval, in seconds.")
    (gone "healthChecks" "Declare probes in the fleet (nixfleet.healthChecks), which sets services.nixfleet-agent.effectiveHealthChecks, or set that.")
    (gone "complianceGate" "A gate is a probe: services.nixfleet-agent.effectiveHealthChecks.NAME = { kind = \"evidence\"; framework = ...; mode = \"enforce\" or \"observe\"; }.")
  ];

  options.services.nixfleet-agent = {
    enable = lib.mkEnableOption "the NixFleet agent";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package that provides bin/nixfleet-agent.";
    };

    controlPlaneUrl = mkOption {
      type = types.str;
      example = "https://fleet.example.com:8443";
      description = "Where the control plane listens; https only.";
    };

    machineId = mkOption {
      type = types.str;
      default = config.hostSpec.hostName or config.networking.hostName;
      defaultText = lib.literalExpression "config.hostSpec.hostName or config.networking.hostName";
      description = "This host's name in the fleet; its certificate is issued for it.";
    };

    trustFile = mkOption {
      type = types.path;
      default = "/etc/nixfleet/agent/trust.json";
      description = ''
        The keys that releases must be signed with. With `nixfleet.trust` set, the module writes the file at the default
        path. A path of the flake (`./trust.json`) is copied into the store, for public keys are no secret.
      '';
    };

    manifestFreshnessWindowSecs = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      description = "How old a signed release may be. null: what the signed fleet says for each channel.";
    };

    renewalThresholdFraction = mkOption {
      type = types.nullOr types.float;
      default = null;
      example = 0.5;
      description = "Renew the certificate when less than this part of its life is left. null: the agent's default.";
    };

    tls = {
      caCert = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "/etc/nixfleet/fleet-ca.pem";
        description = "The CA of the control plane's certificate; when set, that file alone is trusted.";
      };
      clientCert = mkOption {
        type = types.nullOr types.str;
        default = "${cfg.stateDir}/agent-cert.pem";
        defaultText = lib.literalExpression ''"''${stateDir}/agent-cert.pem"'';
        description = ''
          This host's certificate. The agent writes it, so it must be writable and survive reboots. One that the Rust
          agent left in its folder (`/var/lib/nixfleet/agent-cert.pem`) is copied here at the first start.
        '';
      };
      clientKey = mkOption {
        type = types.nullOr types.str;
        default = "/etc/ssh/ssh_host_ed25519_key";
        description = "Its private key: the host's own SSH Ed25519 key.";
      };
    };

    bootstrapTokenFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/bootstrap-token";
      description = ''
        The one-time token of a host that has no certificate yet. With
        `systemd.services.nixfleet-agent.serviceConfig.LoadCredential`, a path below `$CREDENTIALS_DIRECTORY`.
      '';
    };

    stateDir = mkOption {
      type = types.str;
      default = "/var/lib/nixfleet-agent";
      description = "Where the agent keeps its state; it must survive reboots.";
    };

    sshHostKeyFile = mkOption {
      type = types.str;
      default = "/etc/ssh/ssh_host_ed25519_key";
      description = "The key that signs events, and whose public half compliance evidence is verified against.";
    };

    tags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Accepted for compatibility with the Rust agent, and ignored: tags are in the signed fleet.";
    };

    effectiveHealthChecks = mkOption {
      type = types.attrs;
      default = { };
      description = "The health probes of this host, as /etc/nixfleet/agent/health-checks.json holds them.";
    };

    checkConfig = mkOption {
      type = types.bool;
      default = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
      defaultText = lib.literalExpression "pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform";
      description = "Build the system only when `nixfleet-agent check --offline --strict` finds no mistake.";
    };

    bootCheck = mkOption {
      type = types.bool;
      default = false;
      description = ''
        With `boot.loader.systemd-boot.bootCounting`: count a boot as good only when the release that it brought has
        converged. One that never does is left for an older one when its tries are used up.
      '';
    };

    settings = mkOption {
      type = (pkgs.formats.toml { }).type;
      default = { };
      example = lib.literalExpression ''{ metrics.listen = "127.0.0.1:9110"; activation.failed_units = "fail"; }'';
      description = "More keys of agent.toml; the options above win.";
    };
  };

  config = lib.mkIf cfg.enable ({
    environment.systemPackages = [ cfg.package ];
    environment.etc = {
      "nixfleet/agent.toml".source = settingsFile;
    } // lib.optionalAttrs hasHealthChecks {
      "nixfleet/agent/health-checks.json".source = healthChecks;
    } // lib.optionalAttrs (trust != null) {
      "nixfleet/agent/trust.json".source = trustFile;
    };

    # As packaging/nixfleet-agent-boot.service.
    systemd.services.nixfleet-agent-boot = lib.mkIf cfg.bootCheck {
      description = "NixFleet agent: the release that this boot brought has proved itself";
      requiredBy = [ "boot-complete.target" ];
      before = [ "boot-complete.target" ];
      after = [ "nixfleet-agent.service" ];
      restartIfChanged = false;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${cfg.package}/bin/nixfleet-agent boot-check --wait --config ${settingsFile}";
        TimeoutStartSec = "infinity";
      };
    };

    # A boot ends the wait of the guard for a release's own agent: what its record says is armed anew, before that agent.
    systemd.services.nixfleet-agent-guard = {
      description = "NixFleet agent: the host is taken back unless the agent of the release that was booted is ready in time";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      before = [ "nixfleet-agent.service" ];
      restartIfChanged = false;
      unitConfig.ConditionPathExists = "${cfg.stateDir}/switch/rearm.sh";
      path = [ config.nix.package config.systemd.package pkgs.util-linux ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "/bin/sh ${cfg.stateDir}/switch/rearm.sh";
      };
    };

    systemd.services.nixfleet-agent = {
      description = "NixFleet agent";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" "nix-daemon.socket" ];
      startLimitIntervalSec = 0;

      # The switch that brings a new agent is watched by the old one: restarting it here would cut the watch short.
      # A changed health-checks.json is read when the rollout that brings it soaks.
      restartIfChanged = false;
      stopIfChanged = false;

      # systemd's programs; wall(1), which warns before a reboot; renice and ionice, for what is fetched before its turn.
      path = [ config.nix.package config.systemd.package pkgs.util-linux ];

      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = "${cfg.package}/bin/nixfleet-agent run --config ${settingsFile}";
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        Restart = "always";
        RestartSec = 5;
        RestartPreventExitStatus = "75 77 78";
        WatchdogSec = 120;
        TimeoutStopSec = 30;
        KillMode = "mixed";
        OOMScoreAdjust = -250;
        StateDirectory =
          if lib.hasPrefix "/var/lib/" cfg.stateDir then lib.removePrefix "/var/lib/" cfg.stateDir else "nixfleet-agent";
        StateDirectoryMode = "0700";
        UMask = "0077";

        # As in packaging/nixfleet-agent.service, which says why each line is there and which are left out.
        NoNewPrivileges = true;
        ProtectSystem = "full";
        ProtectHome = "read-only";
        CacheDirectory = "nixfleet-agent";
        CacheDirectoryMode = "0700";
        BindPaths = "/var/cache/nixfleet-agent:/root/.cache";
        ProtectKernelTunables = true;
        ProtectKernelModules = true;
        ProtectKernelLogs = true;
        ProtectClock = true;
        ProtectHostname = true;
        ProtectControlGroups = true;
        RestrictRealtime = true;
        LockPersonality = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = "~@clock @cpu-emulation @debug @module @obsolete @raw-io @reboot @swap";
        SystemCallErrorNumber = "EPERM";
        RestrictSUIDSGID = true;
        RestrictAddressFamilies = "AF_UNIX AF_INET AF_INET6 AF_NETLINK";
        CapabilityBoundingSet = "~CAP_SYS_MODULE CAP_SYS_TIME CAP_SYS_BOOT CAP_SYSLOG CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_CONTROL CAP_BPF CAP_PERFMON CAP_LEASE CAP_SYS_PACCT CAP_CHECKPOINT_RESTORE CAP_IPC_LOCK CAP_LINUX_IMMUTABLE CAP_MKNOD CAP_SYS_TTY_CONFIG";
      };
    };
  }
  # Where the fleet's own modules say what outlives a reboot, the state does, and the Rust agent's certificate with it
  # until it is copied.
  // lib.optionalAttrs (options ? nixfleet.persistence.directories) {
    nixfleet.persistence.directories = [ cfg.stateDir "/var/lib/nixfleet" ];
  });
}
