"""Bytes: digests, frames, packs, backends, and the tar and recipe formats."""
