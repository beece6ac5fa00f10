"""A comparison: its cells, their computation, the folder they go to. Does not know the command line."""
