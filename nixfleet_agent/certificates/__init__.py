"""How the host gets and keeps its certificate: enrollment and renewal."""
