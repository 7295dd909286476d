"""Jobs: what one run does as a whole, from taking the lock to publishing."""
