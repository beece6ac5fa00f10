"""A folder of results on disk: manifest, records, samples. Knows no statistics."""
