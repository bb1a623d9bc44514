"""From a dataset to plans: what is wrong with it, what was measured, what is decided, what it will cost."""
