"""Merges beyond the elementary ones, which :func:`epmq.merging.known` finds by themselves."""
