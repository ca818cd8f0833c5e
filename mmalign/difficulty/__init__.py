"""Contrastive and generative gaps of preference pairs, and distribution-aware voting."""
