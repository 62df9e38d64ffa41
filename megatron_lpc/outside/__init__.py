"""Where bytes from outside become values: bounded in size and depth, of the types expected, in their place.

Files of data, options, models and checkpoints are written by others. Whatever they hold is read through here and
becomes a value, or a `Malformed` of one line that names the file. docs/safety.md has the rules.
"""
