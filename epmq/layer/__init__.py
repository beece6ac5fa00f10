"""One linear layer: its problem, its grid, its rounding. Knows neither models nor files."""
