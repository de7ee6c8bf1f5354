"""This project beside what one would otherwise use (`make bench`), and its data plane."""
