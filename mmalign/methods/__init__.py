"""A method turns rows into batches, and a batch into (loss, metrics): sft, mimic, preference, listwise, online, reward, contrastive."""
