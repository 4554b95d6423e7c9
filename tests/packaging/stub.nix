# As much of nixpkgs as the module needs to be evaluated: options become their defaults, files become their content.
# With `program`, a path to a nixfleet-agent, files are files and what is to be built can be built.
{
  settings,
  trust ? null,
  program ? null,
  # What the fleet's own modules declare (an attribute set), and the host name that they know.
  declared ? { },
  hostSpec ? null,
}:
let
  lib = rec {
    mkOption = option: option;
    mkEnableOption = text: { default = false; description = text; };
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    literalExpression = text: text;
    optional = condition: item: if condition then [ item ] else [ ];
    concatStringsSep = builtins.concatStringsSep;
    # The real one declares an option whose definition is an error with this message.
    mkRemovedOptionModule = path: message: { removed = builtins.concatStringsSep "." path; inherit message; };
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
      bool = "bool";
      path = "path";
      float = "float";
      attrs = "attrs";
      ints.positive = "positive";
      nullOr = type: type;
      listOf = type: type;
    };
  };
  # Scalars and one level of tables, which is all that agent.toml has.
  toml =
    set:
    let
      names = builtins.attrNames set;
      isTable = name: builtins.isAttrs set.${name};
      line = name: "${name} = ${builtins.toJSON set.${name}}\n";
      table = name: "[${name}]\n" + toml set.${name};
    in
    lib.concatStringsSep "" (
      map line (builtins.filter (name: !isTable name) names) ++ map table (builtins.filter isTable names)
    );
  pkgs = {
    coreutils = "/coreutils";
    util-linux = "/util-linux";
    callPackage = file: arguments: if program == null then "/agent" else program;
    formats.toml = options: {
      type = "toml";
      generate =
        name: value: if program == null then "${name}:${builtins.toJSON value}" else builtins.toFile name (toml value);
    };
    writers.writeJSON =
      name: value: if program == null then builtins.toJSON value else builtins.toFile name (builtins.toJSON value);
    runCommand =
      name: options: script:
      if program == null then
        "${name} checked by ${script}"
      else
        derivation {
          inherit name;
          system = builtins.currentSystem;
          builder = "/bin/sh";
          args = [ "-euc" script ];
          PATH = "/usr/bin:/bin";
        };
    stdenv.buildPlatform.canExecute = platform: true;
    stdenv.hostPlatform = "here";
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
  module = import ../../packaging/nixos/module.nix {
    inherit config lib pkgs;
    options = declared;
  };
  config = (if hostSpec == null then { } else { inherit hostSpec; }) // {
    networking.hostName = "web-01";
    nixfleet = if trust == null then { } else { inherit trust; };
    nix.package = "/nix-package";
    systemd.package = "/systemd";
    services.nixfleet-agent = merge (defaults module.options.services.nixfleet-agent) settings;
  };
  # Whatever is merged with a condition from outside is lost, as in the real one.
  made = if module.config.condition then module.config.content else { };
in
{
  config = made;
  settingsFile = made.environment.etc."nixfleet/agent.toml".source or null;
  removed = map (item: item.removed) module.imports;
  messages = map (item: item.message) module.imports;
  options = builtins.attrNames module.options.services.nixfleet-agent;
}
