"""Files to arrays and back: images in any orientation, and resampled cases on disk."""
