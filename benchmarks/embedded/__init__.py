"""The embedded suites: data, weights, and the recipes that trained them. No run imports the recipes."""
