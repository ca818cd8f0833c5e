"""One module for each command: its options and the run composed from the rooms."""
