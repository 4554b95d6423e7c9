"""What somebody on this host decided: holds, the fate of a failing rollback, quarantine."""
