"""A method turns rows into batches, and a batch into (loss, metrics): contrastive, sft, mimic, preference, listwise."""
