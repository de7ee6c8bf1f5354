"""Repeated kills, failed writes and damaged files, and checks of the resumed run (docs/reliability.md)."""
