"""Changing the host: realise, set the profile, switch, verify, and the way back."""
