"""What a layer may contain, end to end: every door, every way of showing a tree, the exact result."""
