"""What leaves a run: exported adapters with a card, an archive of the whole, and the check of what came back."""
