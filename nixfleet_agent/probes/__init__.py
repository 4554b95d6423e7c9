"""Is the host well? Declarations, the running set, one runner a kind."""
