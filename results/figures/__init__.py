"""Figures as data, then as files. Knows analysis and tables, not the report."""
