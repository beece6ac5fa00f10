"""Expert-guided post-merge quantisation as a library."""
