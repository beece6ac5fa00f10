"""Versioned records of runs, and the tables, statistics and checks made from them.

Nothing here knows how a number was computed: this package reads and writes result folders only.
"""
