"""The command line: parses, calls a wing, prints. Nothing imports it."""
