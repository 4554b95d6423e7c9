"""What takes minutes of the adversary model."""
