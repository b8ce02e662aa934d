"""The metadata service: what a guest of a managed network may know of itself, at 169.254.169.254."""
