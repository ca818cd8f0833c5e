"""Load, compose, quantise and reference models, all of them stock transformers classes."""
