"""Training data screened by projection difference before anyone trains on it."""
