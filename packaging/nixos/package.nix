# The agent as a Nix package: callPackage ./packaging/nixos/package.nix { }
{
  lib,
  python3Packages,
  installShellFiles,
  src ? lib.cleanSource ../..,
}:
python3Packages.buildPythonApplication {
  pname = "nixfleet-agent";
  version = builtins.head (builtins.match ''.*__version__ = "([^"]+)".*'' (builtins.readFile "${src}/nixfleet_agent/__init__.py"));
  format = "setuptools";
  inherit src;

  disabled = python3Packages.pythonOlder "3.11";
  nativeBuildInputs = [ installShellFiles ];
  propagatedBuildInputs = with python3Packages; [
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

  postInstall = ''
    installManPage packaging/man/nixfleet-agent.8 packaging/man/nixfleet-agent.toml.5
    installShellCompletion --bash packaging/completions/nixfleet-agent.bash
    installShellCompletion --zsh packaging/completions/_nixfleet-agent
    installShellCompletion --fish packaging/completions/nixfleet-agent.fish
  '';

  # The tests start Nix, a control plane and agents of their own: run them with packaging/dev test.
  doCheck = false;
  pythonImportsCheck = [ "nixfleet_agent.runtime.daemon" ];

  meta = {
    description = "The host agent of a NixOS fleet: verifies signed releases, activates them, and takes back what fails";
    mainProgram = "nixfleet-agent";
    platforms = lib.platforms.linux;
  };
}
