"""The running agent: one reducer, its journal, its workers, and the order they start and stop in."""
