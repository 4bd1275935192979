"""What all workers of one region share."""
