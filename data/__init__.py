"""Questions, answers and the files that pass between stages."""
