"""What is done to a running model, and read from it, through hook points."""
