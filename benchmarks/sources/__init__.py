"""Where models and data come from: hub, locks, caches. Knows suites, but no model's insides and no cell."""
