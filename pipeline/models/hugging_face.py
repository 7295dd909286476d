"""Hugging Face image classifiers, from the hub or a local folder: `hf:microsoft/resnet-50`.

Without their head, or trained without one, they are encoders.
"""

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling

from pipeline.errors import JobError, UsageError, one_line
from pipeline.models.checkpoint import refuse_compressed
from pipeline.models.identity import Origin
from pipeline.models.source import LoadedModel, Recipe, Source, measured_model
from transforms.limits import load_json
from transforms.scoring import classes_of_outputs, labels_of_outputs
from transforms.taxonomy import Taxonomy, imagenet9

_PREFIX = "hf:"


_FEATURES: Mapping[str, Callable[[Any], torch.Tensor]] = {
    "pooler_output": lambda outputs: outputs.pooler_output,
    "class token of last_hidden_state": lambda outputs: outputs.last_hidden_state[:, 0],
    "mean of last_hidden_state": lambda outputs: outputs.last_hidden_state.mean(dim=1),
}
"""What may be the features among the outputs of an encoder, best first."""
_CLASS_TOKEN = re.compile(r"\b(cls_token|class_embedding)$")
"""Ends of the names that transformers gives to the parameter of a class token."""


class _Network(torch.nn.Module):
    """A wrapper of a transformers model that maps pictures to logits, or to features.

    Args:
      model: takes `pixel_values`; a classifier returns an object with `logits`.
      flipped: whether the model takes BGR; the wrapper always takes RGB.
      skipped: number of outputs before a classifier's first class, which are cut off.
      features: one of `_FEATURES`, "" for a classifier.
    """

    def __init__(self, model: Any, flipped: bool, skipped: int = 0, features: str = "") -> None:
        super().__init__()
        # Of a model with several towers, the one for pictures.
        self.model = getattr(model, "vision_model", model) if features else model
        self._flipped, self._skipped, self._features = flipped, skipped, features
        if model.config.model_type == "vit_mae":
            # It would keep a random quarter of the patches.
            model.embeddings.random_masking = lambda patches, noise: (patches, None, None)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if self._flipped:
            pictures = pictures.flip(1)
        outputs = self.model(pixel_values=pictures)
        if self._features:
            features = _FEATURES[self._features](outputs)
            # Convolutional networks keep the axes of height and width.
            return features.flatten(1) if features.shape[2:].numel() == 1 else features
        logits: torch.Tensor = outputs.logits
        return logits[:, self._skipped :]


class HuggingFace(Source):
    """`hf:ID`, where ID is a repository of the hub or a local folder."""

    form = "hf:ID"
    text = "image classifiers from the Hugging Face hub or a folder"
    extra = "hf"
    libraries = {"transformers": "transformers"}  # noqa: RUF012

    def check(self, spec: str) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        identifier = spec.removeprefix(_PREFIX)
        if os.path.isdir(identifier):
            if not os.path.isfile(os.path.join(identifier, "config.json")):
                raise UsageError(f"--models {spec}: no config.json in this folder")
            return
        try:
            validate_repo_id(identifier)
        except HFValidationError as error:
            raise UsageError(
                f"--models {spec}: {identifier} is neither a folder nor an ID of the hub, such as "
                "hf:microsoft/resnet-50"
            ) from error

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = False) -> LoadedModel:
        from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
        from transformers.utils import logging

        # Otherwise transformers would print into the output of the command line.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        identifier = spec.removeprefix(_PREFIX)
        maker = AutoModel if encoder else AutoModelForImageClassification
        for path in glob.glob(os.path.join(glob.escape(identifier), "*.bin")):
            refuse_compressed(path)
        try:
            model, loading_info = maker.from_pretrained(
                identifier, dtype=torch.float32, output_loading_info=True
            )
            processor = AutoImageProcessor.from_pretrained(identifier)
        except Exception as error:  # Network, a missing file, another kind of model, broken bytes.
            raise JobError(
                f"{spec} could not be loaded as an image {'encoder' if encoder else 'classifier'} "
                "with its image processor "
                f"({type(error).__name__}: {one_line(error)}). On a machine that cannot reach the "
                "hub, give a folder, or bring the weights along: in9 models fetch"
            ) from error
        missing = sorted(loading_info["missing_keys"])
        if missing and not encoder:
            raise JobError(
                f"{spec} has no weights for {len(missing)} of its tensors ({missing[0]}): "
                "it was not trained as a classifier"
            )
        skipped = 0 if encoder else _check_classes(spec, model.config.id2label, taxonomy)
        settings, flipped = _measure_processor(spec, processor)
        recipe: dict[str, Any] = {"skipped": skipped, "flipped": flipped}
        if encoder:
            recipe["features"] = _choose_features(spec, model, missing, settings["input_size"])
        commit = getattr(model.config, "_commit_hash", None)
        return measured_model(
            settings,
            where=f"{spec}: image processor",
            taxonomy=taxonomy,
            name=spec,
            architecture=type(model).__name__,
            weights=f"{identifier}@{commit}" if commit else identifier,
            module=_Network(model, **recipe),
            recipe={"config": load_json(model.config.to_json_string(use_diff=False)), **recipe},
            features=recipe.get("features", ""),
        )

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        return (
            Origin("hub", spec.removeprefix(_PREFIX))
            if self.needs_hub(spec)
            else super().origin(spec, model)
        )

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

        maker = AutoModel if "features" in recipe else AutoModelForImageClassification
        model = maker.from_config(AutoConfig.for_model(**recipe["config"])).float()
        return _Network(model, **{key: recipe[key] for key in recipe if key != "config"})

    def path(self, spec: str) -> str:
        identifier = spec.removeprefix(_PREFIX)
        # transformers looks for a local folder before it asks the hub.
        return identifier if os.path.exists(identifier) else ""

    def needs_hub(self, spec: str) -> bool:
        return not os.path.isdir(spec.removeprefix(_PREFIX))


@torch.enable_grad()
def _choose_features(spec: str, model: Any, missing: Sequence[str], side: int) -> str:
    """Chooses the first of an encoder's features that use none of the missing tensors.

    Those are named as in the model, and set to 0, because random values would be part of the hash
    of the weights. `side` is that of the model's pictures. Raises JobError if all features use a
    missing tensor.
    """
    model.requires_grad_(True)
    absent = {
        name: torch.nn.init.zeros_(value)
        for name, value in model.named_parameters()
        if name in missing
    }
    # Gradients tell nothing of statistics of batches; their counters are not used.
    others = [
        name
        for name in missing
        if name not in absent and model.get_buffer(name).is_floating_point()
    ]
    tower = getattr(model, "vision_model", model)
    outputs = tower(pixel_values=torch.zeros(1, 3, side, side))
    pooled, token, mean = _FEATURES
    has_token = any(_CLASS_TOKEN.search(name) for name, _ in tower.named_parameters())
    choices = [token if has_token else mean]
    if getattr(outputs, pooled, None) is not None:
        choices.insert(0, pooled)
    weights = [*absent.values()]
    for features in choices:
        total = _FEATURES[features](outputs).sum()
        # Only the weights that features are made of have a gradient.
        gradients = weights and torch.autograd.grad(
            total, weights, retain_graph=True, allow_unused=True
        )
        used = others + [n for n, one in zip(absent, gradients, strict=True) if one is not None]
        if not used:
            return features
    raise JobError(
        f"{spec} has no weights for {len(used)} of the tensors that its features are made of "
        f"({used[0]}): it was not trained as an encoder"
    )


def _check_classes(spec: str, id2label: Mapping[int, str], taxonomy: Taxonomy) -> int:
    """Checks that the model's classes are the taxonomy's; returns the number of outputs to skip.

    Only labels that are names of the taxonomy's classes are compared, so meaningless labels such as
    LABEL_7 are accepted. Raises JobError if the number of classes does not fit the taxonomy, or
    more than a tenth of the known labels are at another output than the taxonomy's.
    """
    labels = [str(id2label[index]) for index in range(len(id2label))]
    # Some ImageNet models begin with an output for the background.
    skipped = int(len(labels) == len(imagenet9().wnids) + 1 and labels[0].lower() == "background")
    labels = labels[skipped:]
    try:
        labels_of_outputs(len(labels), taxonomy)
    except ValueError as error:
        raise JobError(
            f"{spec} has {len(labels)} classes ({', '.join(labels[:3])}, ...): {error}"
        ) from error
    names = classes_of_outputs(len(labels), taxonomy) or taxonomy.names
    words_of = [words.lower().split(", ") for words in names]
    every = {word for words in words_of for word in words}
    given = [label.split(",")[0].strip().lower() for label in labels]
    known = [index for index, word in enumerate(given) if word in every]
    misplaced = [index for index in known if given[index] not in words_of[index]]
    if len(misplaced) > len(known) / 10:
        raise JobError(
            f"{spec} has its classes in another order: output {misplaced[0]} is "
            f"{labels[misplaced[0]]!r}, and must be {names[misplaced[0]]!r}"
        )
    return skipped


def _measure_processor(spec: str, processor: Any) -> tuple[dict[str, Any], bool]:
    """Determines what an image processor does, by running it on pictures of a single colour.

    Reading its configuration would not be enough, because each kind of processor has its own way to
    describe scales, offsets, a second normalisation or BGR.

    Returns the attributes of a `Preprocessing` except `fixed_size`, and whether the model takes
    BGR. Raises JobError if the processor does not take pictures, or its output is not (3, S, S), or
    not a linear function of each channel.
    """

    def processed(red: int, green: int, blue: int) -> torch.Tensor:
        picture = np.full((256, 256, 3), (red, green, blue), np.uint8)
        pixels: torch.Tensor = processor(picture, return_tensors="pt")["pixel_values"][0]
        return pixels.double()

    try:
        black, grey, white, red = (
            processed(*colour) for colour in ((0,) * 3, (51,) * 3, (255,) * 3, (255, 0, 0))
        )
    except Exception as error:  # A processor for text or sound fails in its own way.
        raise JobError(
            f"{spec}: its image processor does not take pictures ({type(error).__name__})"
        ) from error
    if black.ndim != 3 or black.shape[0] != 3 or black.shape[1] != black.shape[2]:
        raise JobError(f"{spec}: its image processor returns {tuple(black.shape)}, not (3, S, S)")
    side = black.shape[1]
    low, middle, high, hot = (
        pixels[:, side // 2, side // 2] for pixels in (black, grey, white, red)
    )
    if not torch.allclose(middle - low, (high - low) / 5, atol=1e-4) or not (high > low).all():
        raise JobError(f"{spec}: its image processor is not a normalisation by mean and std")
    flipped = bool(torch.isclose(hot[2], high[2]) and torch.isclose(hot[0], low[0]))
    std, mean = 1 / (high - low), -low / (high - low)
    if flipped:
        std, mean = std.flip(0), mean.flip(0)
    size = getattr(processor, "size", None) or {}
    shorter = size.get("shortest_edge") if hasattr(size, "get") else None
    crop = getattr(processor, "crop_pct", None) or (side / shorter if shorter else None)
    resample = getattr(processor, "resample", None)
    settings = {
        "input_size": side,
        # Published values have three or four digits, so rounding removes only float32's error.
        # Adding 0.0 turns -0.0 into 0.0.
        "mean": [round(float(value), 6) + 0.0 for value in mean],
        "std": [round(float(value), 6) for value in std],
        "interpolation": Resampling(2 if resample is None else int(resample)).name.lower(),
        "crop_pct": min(1.0, float(crop or 1.0)),
        "crop_mode": "center" if crop else "squash",
    }
    return settings, flipped
