"""What people are told: logs, metrics, status, systemd's notifications."""
