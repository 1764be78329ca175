"""Words on a terminal: the command and its output."""
