"""Which of this host's own programs are told what happens to it, and which may keep a switch waiting."""
