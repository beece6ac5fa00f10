"""Rounding methods, one file each; whatever is in this folder is registered by its decorator."""
