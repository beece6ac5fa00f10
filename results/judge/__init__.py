"""Verdicts on a folder: against a golden run, against its own samples. Draws nothing."""
