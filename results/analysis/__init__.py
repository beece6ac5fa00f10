"""Records compared: groups of cells, rows, partners, statistics. Knows the store alone."""
