"""What happened, durably: one file an event, one folder a rollout's log."""
