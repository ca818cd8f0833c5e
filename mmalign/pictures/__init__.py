"""Pictures that models draw: tokenised, sampled, read."""
