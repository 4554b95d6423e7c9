"""What becomes of a turn: checked, kept for a retry, decided, refused."""
