"""A whole fleet on one machine: real agents, real Nix, real keys, and a story that a release goes through.

Nothing in here is faked for the agents: they are the same processes, with the same configuration keys, as on a
host. What is small is the closures, and what is short is the intervals.
"""
