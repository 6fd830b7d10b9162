"""What the scripts in experiments/ share: their arguments, what they start from, and how results are written."""
