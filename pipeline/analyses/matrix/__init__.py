"""The paper's train x test matrix: a model trained on each variant, and tested on every variant."""
