"""Everything that touches a model: its source, prompts, policy, engines, log-probabilities, and peers' processes."""
