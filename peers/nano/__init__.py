"""The nano peers: three tiny models that come with the project, and the run that makes them."""
