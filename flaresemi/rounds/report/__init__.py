"""The report of a round, for a person: whether it helped, what was selected, whether to trust it."""
