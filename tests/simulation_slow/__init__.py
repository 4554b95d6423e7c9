"""Two minutes of seeds that nobody has run before."""
