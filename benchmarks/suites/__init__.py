"""Suites as data and the forms they must have. Knows neither the hub nor any model."""
