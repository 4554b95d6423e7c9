"""The commands, one module each: ``configure(parser)`` adds its arguments, ``run(call)`` returns the exit code."""
