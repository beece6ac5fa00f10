"""The recipe of the embedded text suite."""
