"""Score: teacher-forced log-probabilities, PMI, weights."""
