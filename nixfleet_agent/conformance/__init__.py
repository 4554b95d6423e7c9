"""Drives any agent through the stories of the protocol, and judges what it puts on the wire and does to its host.

It knows the agent by its requests, by its exit, and by what runs on the host; nothing of its files, log or threads.
"""
