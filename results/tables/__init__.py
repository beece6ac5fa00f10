"""Tables of a folder in every format. Knows analysis, not figures."""
