"""Device, mixed precision, ranks and bounded parallel work."""
