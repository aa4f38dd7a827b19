"""What a detector scores under each protocol: pure functions of numpy arrays, and their files."""
