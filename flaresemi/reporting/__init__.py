"""Pictures and pages for people: overlays, training curves, charts. Reads images and records only."""
