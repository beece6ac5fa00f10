"""A suite's models and data, opened, and the machine they are on. Knows no modality and no cell."""
