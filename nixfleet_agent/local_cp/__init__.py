"""A control plane for demos, tests and development; production uses the NixFleet control plane.

It speaks the whole wire protocol over mutual TLS and mirrors every host through the same ``step`` as the agent.
It is one process with one SQLite file and no operator accounts: do not put a real fleet behind it.
"""
