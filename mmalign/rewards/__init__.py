"""What an answer is worth: rewards of the answers that a policy samples to a prompt."""
