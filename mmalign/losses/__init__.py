"""Pure tensor functions: the objectives. They know no model, no config and no I/O."""
