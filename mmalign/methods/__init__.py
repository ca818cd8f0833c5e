"""A method turns a batch into (loss, metrics): supervised fine-tuning, preference, contrastive."""
