# The agent as a Nix package: callPackage ./packaging/nixos/package.nix { }
{
  lib,
  python3Packages,
  installShellFiles,
  nix,
  openssh,
  src ? lib.cleanSource ../..,
  # The fast tests: two minutes, real Nix in stores of their own, real TLS on the loopback.
  doCheck ? true,
}:
python3Packages.buildPythonApplication {
  pname = "nixfleet-agent";
  # From the file beside this one, not from `src`, which may be a derivation that would have to be built first.
  version = builtins.head (
    builtins.match ''.*__version__ = "([^"]+)".*'' (builtins.readFile ../../nixfleet_agent/__init__.py)
  );
  pyproject = true;
  inherit src doCheck;

  build-system = [ python3Packages.setuptools ];
  dependencies = with python3Packages; [
    requests
    urllib3
    pyopenssl
    cryptography
    jsonschema
    schedule
    python-json-logger
    rfc8785
    prometheus-client
  ];
  nativeBuildInputs = [ installShellFiles ];
  nativeCheckInputs = [
    python3Packages.hypothesis
    python3Packages.rich
    nix
    openssh
  ];

  checkPhase = ''
    runHook preCheck
    HOME=$(mktemp -d) python -m tests --fast
    runHook postCheck
  '';

  postInstall = ''
    installManPage packaging/man/nixfleet-agent.8 packaging/man/nixfleet-agent.toml.5
    installShellCompletion --bash packaging/completions/nixfleet-agent.bash
    installShellCompletion --zsh packaging/completions/_nixfleet-agent
    installShellCompletion --fish packaging/completions/nixfleet-agent.fish
  '';

  pythonImportsCheck = [ "nixfleet_agent.runtime.daemon" ];

  meta = {
    description = "The host agent of a NixOS fleet: verifies signed releases, activates them, and takes back what fails";
    mainProgram = "nixfleet-agent";
    platforms = lib.platforms.linux;
  };
}
