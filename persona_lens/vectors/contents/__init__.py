"""What is in a vector: words, sparse sums of token directions, and features of sparse autoencoders."""
