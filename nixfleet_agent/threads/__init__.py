"""How a thread lives and ends: workers and their supervisor, shutdown, timers, mailboxes, signals, the clock."""
