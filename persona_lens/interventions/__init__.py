"""What is done to the residual stream, from vectors to hooks."""
