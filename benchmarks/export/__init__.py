"""From a record to its model on disk, and back to the same answers. Does not know the command line."""
