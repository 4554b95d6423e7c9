"""Real agents in one process under a scheduler that owns time and chance; see ``python -m tests.simulation --help``."""
