"""What the experiments find: a record and its figures for each script, and nothing that runs a model."""
