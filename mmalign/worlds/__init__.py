"""The embedded world: scenes of known content, captions, pairs, questions."""
