"""Trained models of several plans compared on the cases that they held out."""
