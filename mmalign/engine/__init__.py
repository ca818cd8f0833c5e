"""Shared-prefix rows, response-only token log-probabilities: hidden states in, numbers out."""
