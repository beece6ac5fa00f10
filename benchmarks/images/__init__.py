"""The workbench of image suites: CLIP towers under zero-shot heads. Knows neither cells nor text."""
