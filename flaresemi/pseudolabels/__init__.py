"""From unlabeled cases to pseudo-labels that can be trusted."""
