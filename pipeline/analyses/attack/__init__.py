"""The adversarial attack: models on a grid of foregrounds and backgrounds, and its measures."""
