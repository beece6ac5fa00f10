"""The workbench of text suites: language models through lm-eval. Knows neither cells nor images."""
