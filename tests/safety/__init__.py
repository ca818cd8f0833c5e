"""What files from elsewhere can do, and what they must not."""
