"""Models and samples of one's own, without a suite file and without labels. Evaluates nothing."""
