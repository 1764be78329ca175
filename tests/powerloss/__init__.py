"""Power loss: block writes recorded, then replayed up to every barrier."""
