"""The recipe of the embedded image suite."""
