"""Jobs: a run as a whole, from taking the lock to publishing."""
