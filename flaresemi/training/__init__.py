"""From a stage's plan and its prepared cases to a checkpoint."""
