"""Teacher-forced log-probabilities."""
