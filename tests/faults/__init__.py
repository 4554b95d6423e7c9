"""Faults on purpose: the real daemon, a real control plane over mutual TLS, real Nix; killed, cut off, out of disk.

``python -m tests.faults`` runs them all (14 minutes on two cores), ``--list`` names them, ``--quick`` runs a sample
(minutes); ``tests/faults_slow`` runs a smaller sample with every run of the tests.

A *story* (``stories``) is told once undisturbed, which gives its ending (``ending``) and every durable-write boundary
that it meets (``labels``); then it is told again for each boundary, with one *plan* for the agent's process
(``plan``, ``agent``), which the *rig* (``rig``) starts again as an init system would. What must be the same is in
``ending``; what must hold in any run (every seq once, in order, the same bytes on both sides; nothing undelivered, no
stray file, no process left; no switch before its event was on disk) is in ``ending.flaws``.
"""
