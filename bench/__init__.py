"""Measurements beside the reference command, in one run; run by ``make bench``."""
