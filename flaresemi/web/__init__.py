"""What local servers have in common."""
