"""The page that a round leaves for a person: did it help, what was selected, and can it be trusted."""
