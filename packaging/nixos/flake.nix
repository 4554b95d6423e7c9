# For a fleet's flake:  inputs.nixfleet-agent.url = "git+https://HOST/nixfleet-agent?dir=packaging/nixos";
# The files above this folder come with the repository, so it must be fetched as one (git, not a path to this folder).
{
  description = "The host agent of a NixOS fleet";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEach = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
    in
    {
      nixosModules.default = ./module.nix;

      overlays.default = final: _: { nixfleet-agent = final.callPackage ./package.nix { }; };

      packages = forEach (pkgs: rec {
        nixfleet-agent = pkgs.callPackage ./package.nix { };
        default = nixfleet-agent;
      });

      # The package runs the fast tests. The configuration of a host goes through the real module system and is built,
      # so that the agent has judged it. Two machines show it at work: a release, a bad one, one that takes a reboot.
      checks = forEach (pkgs: {
        package = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        two-machines = pkgs.callPackage ./two-machines.nix {
          inherit (self.packages.${pkgs.stdenv.hostPlatform.system}) nixfleet-agent;
        };
        configuration =
          (nixpkgs.lib.nixosSystem {
            inherit (pkgs.stdenv.hostPlatform) system;
            modules = [
              self.nixosModules.default
              {
                services.nixfleet-agent = {
                  enable = true;
                  controlPlaneUrl = "https://cp.example:8443";
                  effectiveHealthChecks.ssh = {
                    kind = "tcp";
                    port = 22;
                  };
                };
              }
            ];
          }).config.environment.etc."nixfleet/agent.toml".source;
      });
    };
}
