"""The paper's train x test matrix: one model is trained on each variant, and tested on every
variant."""
