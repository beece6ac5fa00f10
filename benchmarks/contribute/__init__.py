"""Results that others contribute: judged by recomputing, and reproduced. Knows no command line."""
