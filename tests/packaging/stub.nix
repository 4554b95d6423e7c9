# As much of nixpkgs as the module needs to be evaluated: options become their defaults, files become their content.
{ settings }:
let
  lib = rec {
    mkOption = option: option;
    mkEnableOption = text: { default = false; description = text; };
    mkIf = condition: value: if condition then value else { };
    literalExpression = text: text;
    optionalAttrs = condition: set: if condition then set else { };
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    removePrefix = prefix: text: builtins.substring (builtins.stringLength prefix) (-1) text;
    filterAttrs =
      test: set:
      builtins.listToAttrs (
        builtins.filter (item: test item.name item.value) (
          map (name: { inherit name; value = set.${name}; }) (builtins.attrNames set)
        )
      );
    types = {
      package = "package";
      str = "str";
      float = "float";
      attrs = "attrs";
      ints.positive = "positive";
      nullOr = type: type;
      listOf = type: type;
    };
  };
  pkgs = {
    coreutils = "/coreutils";
    callPackage = file: arguments: "/agent";
    formats.toml = options: {
      type = "toml";
      generate = name: value: "${name}:${builtins.toJSON value}";
    };
    writers.writeJSON = name: value: builtins.toJSON value;
  };
  isOption = value: builtins.isAttrs value && value ? description;
  defaults =
    options: builtins.mapAttrs (name: value: if isOption value then value.default or null else defaults value) options;
  merge =
    under: over:
    under
    // builtins.mapAttrs (
      name: value: if builtins.isAttrs value && builtins.isAttrs (under.${name} or null) then merge under.${name} value else value
    ) over;
  module = import ../../packaging/nixos/module.nix { inherit config lib pkgs; };
  config = {
    networking.hostName = "web-01";
    nix.package = "/nix-package";
    systemd.package = "/systemd";
    services.nixfleet-agent = merge (defaults module.options.services.nixfleet-agent) settings;
  };
in
{
  inherit (module) config;
  options = builtins.attrNames module.options.services.nixfleet-agent;
}
