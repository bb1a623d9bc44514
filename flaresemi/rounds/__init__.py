"""The self-training loop: rounds of labeling, selecting, training and judging."""
