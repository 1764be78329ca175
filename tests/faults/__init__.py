"""Faults at every system call that changes state: a kill, an I/O error, a full disk, a short write."""
