"""Coverage-guided fuzzing of all that reads bytes from outside, and the inputs it found. See docs/fuzzing.md."""
