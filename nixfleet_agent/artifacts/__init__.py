"""Which signed files this host holds: fetched, verified, cached, judged again at use."""
