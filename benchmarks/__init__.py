"""Suites, and all that runs them. Does not know how a method works."""
