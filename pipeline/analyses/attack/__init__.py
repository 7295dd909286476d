"""Attack: adversarial backgrounds, from the grid to the tables."""
