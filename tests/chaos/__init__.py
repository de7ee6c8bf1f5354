"""Kills, failed writes and damaged files, again and again, and what a resumed run has made (docs/reliability.md)."""
