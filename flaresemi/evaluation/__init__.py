"""Prediction against reference: volume overlap, surface distances and FLARE's rules."""
