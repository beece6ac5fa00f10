"""Models as towers of blocks with linear layers by name. Knows no layer problem and no suite."""
