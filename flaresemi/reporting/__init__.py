"""What a person looks at: overlays and curves. Reads images and records only."""
