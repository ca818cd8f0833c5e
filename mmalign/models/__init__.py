"""Load, compose, upcycle, quantise, adapt and reference models, all of them stock transformers classes."""
