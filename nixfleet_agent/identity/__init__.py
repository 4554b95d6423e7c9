"""Who this host is: the SSH host key, the certificate bound to it, and the checks on both."""
