"""What preference training did to a model, and what its pairs are like: numbers on log-probabilities and hidden states."""
