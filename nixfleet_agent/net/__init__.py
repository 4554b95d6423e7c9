"""The one door to the network: TLS, deadlines and size limits that no call can forget."""
