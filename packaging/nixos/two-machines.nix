# Two machines, one fleet: the host converges, takes back a bad release, and brings a deferred one through a reboot.
#
#   nix build ./packaging/nixos#checks.x86_64-linux.two-machines -L
{
  testers,
  python3Packages,
  nixfleet-agent,
  module ? ./module.nix,
}:
let
  hostname = "web-01";
  folder = "/var/lib/fleet";
  # The control plane serves the loopback alone, and its certificate says so: what joins the two machines is a relay.
  port = "8443";
  between = "9443";
  relay = pkgs: from: to: {
    sockets.relay = {
      wantedBy = [ "sockets.target" ];
      listenStreams = [ from ];
    };
    services.relay.serviceConfig.ExecStart = "${pkgs.systemd}/lib/systemd/systemd-socket-proxyd ${to}";
  };
in
testers.runNixOSTest {
  name = "nixfleet-agent-two-machines";

  nodes.cp =
    { pkgs, ... }:
    {
      networking.firewall.allowedTCPPorts = [ 9443 ];
      systemd = {
        inherit (relay pkgs "0.0.0.0:${between}" "127.0.0.1:${port}") sockets;
        services = {
          inherit ((relay pkgs "0.0.0.0:${between}" "127.0.0.1:${port}").services) relay;
          fleet = {
            wantedBy = [ "multi-user.target" ];
            serviceConfig = {
              StateDirectory = "fleet";
              ExecStart = "${pkgs.fleet}/bin/fleet serve ${folder} ${hostname}";
            };
          };
        };
      };
      environment.systemPackages = [ pkgs.fleet ];
      nixpkgs.overlays = [
        (final: _: {
          fleet = final.writeShellScriptBin "fleet" ''
            exec ${(python3Packages.python.withPackages (_: [ (python3Packages.toPythonModule nixfleet-agent) ])).interpreter} ${./fleet.py} "$@"
          '';
        })
      ];
    };

  nodes.host =
    { lib, pkgs, ... }:
    {
      imports = [ module ];

      virtualisation = {
        # A host that reboots into what the boot entry names needs a boot loader, and a store of its own to write to.
        useBootLoader = true;
        useEFIBoot = true;
        writableStore = true;
      };
      boot.loader.systemd-boot.enable = true;
      nix.settings.substituters = lib.mkForce [ ];

      services.nixfleet-agent = {
        enable = true;
        package = nixfleet-agent;
        controlPlaneUrl = "https://localhost:${port}";
        machineId = hostname;
        tls.caCert = "/var/lib/fleet-trust/fleet-ca.pem";
        trustFile = "/var/lib/fleet-trust/trust.json";
        bootstrapTokenFile = "/var/lib/fleet-trust/bootstrap-token.json";
        effectiveHealthChecks.web = {
          kind = "tcp";
          port = 80;
          intervalSeconds = 2;
        };
        settings.health_failure_threshold_secs = 10;
      };
      # Keys and token come from the other machine: started by the test for the first time, at each boot after that.
      systemd.services.nixfleet-agent.unitConfig.ConditionPathExists = "/var/lib/fleet-trust/bootstrap-token.json";
      systemd.sockets = (relay pkgs "127.0.0.1:${port}" "cp:${between}").sockets;
      systemd.services.relay = (relay pkgs "127.0.0.1:${port}" "cp:${between}").services.relay;

      services.openssh.enable = true;
      services.nginx.enable = true;

      specialisation = {
        good.configuration.environment.etc."release".text = "good";
        bad.configuration.services.nginx.enable = lib.mkForce false;
        # Another D-Bus can't replace the one that runs: the script leaves it to the next boot.
        reboot.configuration.services.dbus.implementation = "broker";
      };
    };

  testScript = ''
    import json
    import shlex

    TRUST = "/var/lib/fleet-trust"


    def state_of(rollout):
        status = json.loads(host.succeed("nixfleet-agent status --json"))
        return {each["rollout_id"]: each["state"] for each in status["rollouts"]}.get(rollout)


    def release(name):
        closure = host.succeed(f"readlink -f {ORIGINAL}/specialisation/{name}").strip()
        return closure, cp.succeed(f"fleet release ${folder} {name} {closure}").strip()


    def wait_for_state(rollout, state):
        with host.nested(f"{rollout} becomes {state}"):
            retry(lambda _: state_of(rollout) == state)


    def running():
        return host.succeed("readlink -f /run/current-system").strip()


    start_all()
    cp.wait_for_file("${folder}/trust.json")
    host.wait_for_unit("sshd.service")
    host.wait_for_open_port(80)
    ORIGINAL = running()

    with subtest("the host enrolls with a token for its own key"):
        host.succeed(f"mkdir -m 0700 {TRUST}")
        public = host.succeed("cat /etc/ssh/ssh_host_ed25519_key.pub").strip()
        cp.succeed(f"echo {shlex.quote(public)} > /root/host.pub")
        for name, text in (
            ("trust.json", cp.succeed("cat ${folder}/trust.json")),
            ("fleet-ca.pem", cp.succeed("cat ${folder}/fleet-ca.pem")),
            ("bootstrap-token.json", cp.succeed("fleet token ${folder} /root/host.pub")),
        ):
            host.succeed(f"printf %s {shlex.quote(text)} > {TRUST}/{name}")
        # What is published lists the token's nonce: nobody enrolls before the first release.
        good, good_rollout = release("good")
        host.succeed("systemctl start nixfleet-agent.service")

    with subtest("a good release converges"):
        wait_for_state(good_rollout, "Converged")
        assert running() == good, running()
        host.succeed("grep good /etc/release")

    with subtest("a release whose probe fails is taken back"):
        bad, bad_rollout = release("bad")
        wait_for_state(bad_rollout, "Reverted")
        assert running() == good, running()
        host.wait_for_open_port(80)

    with subtest("a release that can't be switched to live comes with the next boot"):
        deferred, deferred_rollout = release("reboot")
        wait_for_state(deferred_rollout, "Deferred")
        assert running() == good, running()
        host.shutdown()
        host.start()
        host.wait_for_unit("nixfleet-agent.service")
        wait_for_state(deferred_rollout, "Converged")
        assert running() == deferred, running()

    with subtest("nothing that happened is missing at the control plane"):
        queue = json.loads(host.succeed("nixfleet-agent status --json"))["queue"]
        assert queue["queued"] == 0, queue
        host.succeed("nixfleet-agent check")
  '';
}
