"""`make bench`: this project and others on the same inputs. Not collected by pytest."""
