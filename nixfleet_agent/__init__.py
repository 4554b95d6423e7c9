"""The host agent of a NixOS fleet; this file owns the version and nothing else."""

__version__ = "0.2.0"
