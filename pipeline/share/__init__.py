"""Sharing a run: exported adapters with a card, an archive of the whole run, and checks of both."""
