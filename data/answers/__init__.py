"""Final answers: where a response states one, and which answers agree."""
