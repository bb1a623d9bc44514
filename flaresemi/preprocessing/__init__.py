"""From an image to a stage's voxels, and from a stage's logits back to labels on the image's grid."""
