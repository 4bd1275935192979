"""The user-data that turns a vanilla image into a worker."""
