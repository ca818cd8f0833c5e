"""The one trainer, its arguments and callbacks."""
