"""Fault injection: trainings that are killed, corrupted, filled and disconnected, and must lose nothing by it."""
