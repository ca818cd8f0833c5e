"""Judges: a model behind an OpenAI-compatible endpoint, or a local one, with a cache of what they said."""
