"""When does the host reboot by itself, and why not yet?"""
