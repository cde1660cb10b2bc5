"""Twins: the same answers by code that a reader believes at sight."""
