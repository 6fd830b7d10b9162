"""A quality card for any vector: how stable, separating, confounded, specific and legible it is."""
