"""What each command does, composed from the rooms; its options stand in ``options``."""
