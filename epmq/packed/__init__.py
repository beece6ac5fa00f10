"""Quantised models on disk: packed checkpoints that others load, our own form, and reading all of them."""
