"""Generate: the chain of responses and the aggregate."""
