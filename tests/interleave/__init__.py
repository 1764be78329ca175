"""Collections beside everything else: by a scheduler that decides each step, and by real processes."""
