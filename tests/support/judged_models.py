"""Makes models whose answers are known, for tests of what judges them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from made_results import made
from numpy.typing import NDArray

from pipeline.evaluate.comparisons import ModelsOnSameImages
from pipeline.evaluate.families import families_of
from pipeline.evaluate.predictions import EvalImages
from pipeline.evaluate.summary import Summary
from transforms.scoring import LABEL_RULES
from transforms.variants import ORIGINAL, VariantName

SETTINGS = {"split": "val", "eval_input": "stored", "precision": "fp32", "holdout": 0.0}
RULES = tuple(LABEL_RULES)
MIXED = (VariantName("mixed_same"), VariantName("mixed_rand"))
Answers = dict[VariantName, NDArray[np.bool_]]


def answers(rng: np.random.Generator, n: int, **shares: float) -> Answers:
    """Draws whether a model is right on n pictures of each variant."""
    shares = {"original": 0.8, "mixed_same": 0.8, "mixed_rand": 0.6, **shares}
    return {VariantName(name): rng.random(n) < share for name, share in shares.items()}


def models_of(
    *models: Answers, rules: tuple[str, ...] = RULES, seed: int = 0, labels: Sequence[str] = ()
) -> ModelsOnSameImages:
    """Returns models that are right on the given pictures, under each of the rules.

    They have labels and weights of their own, if these are given.
    """
    n = len(models[0][ORIGINAL])
    keys, numbers = pa.array([f"{i:06}" for i in range(n)]), np.arange(n)
    classes = np.zeros(n, np.int16)
    images = EvalImages(keys, classes, np.zeros(n), keys, classes, (), numbers)
    summaries = [
        made(
            Summary,
            model=f"m{i}",
            entry=f"m{i}",
            evaluation=SETTINGS,
            label_rules=rules,
            **({"label": labels[i], "weights_sha256": f"{i:064}"} if labels else {}),
        )
        for i in range(len(models))
    ]
    rng = np.random.default_rng(seed)
    grounds = {name: rng.permutation(n) for name in MIXED}
    correct = [dict.fromkeys(rules, model) for model in models]
    families, _ = families_of(summaries)
    return ModelsOnSameImages(images, tuple(models[0]), summaries, correct, grounds, families)
