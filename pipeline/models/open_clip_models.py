"""Zero-shot classifiers, made from open_clip's CLIP models and the names of the classes.

For ImageNet, the names of the classes and the 80 templates are those of open_clip, so that
accuracies compare with published ones; for other classes, templates are the seven that CLIP's
authors found to be the best subset. The head is kept in the folder of torch.hub, because it takes
minutes on a CPU.
"""

import collections
import contextlib
import dataclasses
import functools
import glob
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch.nn import functional

from pipeline.errors import JobError, UsageError, one_line
from pipeline.models.checkpoint import refuse_compressed
from pipeline.models.identity import Origin
from pipeline.models.source import (
    LoadedModel,
    Recipe,
    Source,
    closest,
    measured_model,
    state_hash,
)
from pipeline.storage.store import Store
from transforms.hashing import text_digest
from transforms.taxonomy import OUTSIDE, Taxonomy

_PREFIX = "open_clip:"
_HUB = "hf-hub:"

Prompts = tuple[Sequence[str], Sequence[Callable[[str], str]]]
"""Names of classes, and templates of texts that hold such a name."""


class ZeroShot(torch.nn.Module):
    """A CLIP image tower with a fixed text direction for each class, or without a head.

    Args:
      visual: maps (n, 3, S, S) pictures to (n, width) features, or to a tuple whose first item are
        the features.
      head: (classes, width), the text directions times the logit scale. A picture's logits are the
        product of the head and the picture's normalised features. None gives the features.
    """

    head: torch.Tensor | None

    def __init__(self, visual: torch.nn.Module, head: torch.Tensor | None) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("head", head)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor | tuple[torch.Tensor, ...] = self.visual(pictures)
        if isinstance(features, tuple):
            features = features[0]
        if self.head is None:
            return features
        with torch.autocast(pictures.device.type, enabled=False):
            directions = functional.normalize(features.float(), dim=-1)
            return directions @ self.head.T


class OpenClip(Source):
    """`open_clip:ARCH:PRETRAINED`, `open_clip:FOLDER` or `open_clip:hf-hub:ORG/NAME`.

    PRETRAINED is a tag or a file.
    """

    form = "open_clip:ARCH:TAG, open_clip:ARCH:FILE, open_clip:hf-hub:ID or open_clip:FOLDER"
    text = "CLIP models as zero-shot classifiers, by the names of the classes"
    extra = "clip"
    libraries = {"open_clip": "open_clip_torch"}  # noqa: RUF012

    def check(self, spec: str) -> None:
        import open_clip

        identifier = spec.removeprefix(_PREFIX)
        if os.path.isdir(identifier):
            if not os.path.isfile(os.path.join(identifier, "open_clip_config.json")):
                raise UsageError(f"--models {spec}: no open_clip_config.json in this folder")
            return
        if identifier.startswith(_HUB) and len(identifier) > len(_HUB):
            return
        architecture, _, pretrained = identifier.partition(":")
        known = open_clip.list_models()
        if architecture not in known:
            raise UsageError(
                f"--models {spec}: open_clip has no model {architecture!r}"
                f"{closest(architecture, known)}"
            )
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if pretrained not in tags and not os.path.isfile(pretrained):
            raise UsageError(
                f"--models {spec}: {pretrained!r} is neither a file nor one of the weights of "
                f"{architecture}: {', '.join(tags) or 'there are none'}"
            )

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        return len(class_prompts(taxonomy)[0])

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = False) -> LoadedModel:
        import open_clip

        try:
            names, templates = ([], []) if encoder else class_prompts(taxonomy)
        except ValueError as error:
            raise JobError(f"{spec}: {error}") from error
        architecture, pretrained = _parse(spec)
        tag = open_clip.get_pretrained_cfg(architecture, pretrained) if pretrained else {}
        folder = glob.escape(architecture.removeprefix("local-dir:"))
        for path in [*glob.glob(f"{folder}/*.bin"), pretrained]:
            if path and os.path.isfile(path):
                refuse_compressed(path)
        try:
            model: Any = open_clip.create_model(
                architecture,
                pretrained,
                require_pretrained=True,
                # GELU comes in two forms, and each tag's weights were trained with one of them.
                force_quick_gelu=bool(tag.get("quick_gelu", False)),
            )
            config = open_clip.get_model_config(architecture)
            tokenizer = None if encoder else open_clip.get_tokenizer(architecture)
        except Exception as error:  # Network, a missing file, another model, broken bytes.
            raise JobError(
                f"{spec} could not be loaded ({type(error).__name__}: {one_line(error)}). On a "
                "machine that cannot reach the hub, give a file or a folder, or bring the weights "
                "along: in9 models fetch"
            ) from error
        model.eval().requires_grad_(False)
        # The hash leaves out the head, because it is computed here, and its last bits depend on the
        # machine. What it is computed from counts. The place of a folder does not: its
        # configuration says what the network is.
        quick_gelu = bool(config.get("quick_gelu", False) or tag.get("quick_gelu", False))
        texts = [template("{}") for template in templates]
        built = [architecture if pretrained else "", config, quick_gelu, [*names], texts]
        weights = state_hash((model.visual if encoder else model).state_dict())
        digest = text_digest(json.dumps([weights, *built], sort_keys=True))
        preprocess = dict(model.visual.preprocess_cfg)
        compute = functools.partial(_head, spec, model, tokenizer, (names, templates))
        module = ZeroShot(model.visual, None if encoder else _kept_head(digest, compute))
        del model, compute
        return measured_model(
            _settings(preprocess),
            where=spec,
            taxonomy=taxonomy,
            name=spec,
            architecture=f"{_PREFIX}{architecture}",
            weights=os.path.basename(pretrained or architecture),
            module=module,
            recipe={
                "embed_dim": config["embed_dim"],
                "vision_cfg": {**config["vision_cfg"], "timm_model_pretrained": False},
                "quick_gelu": quick_gelu,
                "classes": len(names),
            },
            weights_sha256=digest,
            features="encode_image" * encoder,
        )

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        if not self.needs_hub(spec):
            return super().origin(spec, model)
        import open_clip

        architecture, pretrained = _parse(spec)
        tag = open_clip.get_pretrained_cfg(architecture, pretrained) if pretrained else {}
        repository = tag.get("hf_hub", "") if pretrained else architecture.removeprefix(_HUB)
        # `hf_hub` is OWNER/NAME, and the name of a file in the repository may follow.
        owner_and_name = repository.strip("/").split("/")[:2]
        return Origin("hub", "/".join(owner_and_name)) if len(owner_and_name) == 2 else None

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        import open_clip

        # The text tower is as small as possible, because the head already holds its directions for
        # the classes, and nothing else of it is used.
        model = open_clip.CLIP(
            embed_dim=recipe["embed_dim"],
            vision_cfg=recipe["vision_cfg"],
            text_cfg={"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1},
            quick_gelu=recipe["quick_gelu"],
        )
        head = torch.zeros(recipe["classes"], recipe["embed_dim"]) if recipe["classes"] else None
        return ZeroShot(model.visual, head)

    def path(self, spec: str) -> str:
        identifier = spec.removeprefix(_PREFIX)
        weights = identifier.partition(":")[2]
        # open_clip looks for local files before it asks the hub.
        return next((path for path in (identifier, weights) if os.path.exists(path)), "")

    def needs_hub(self, spec: str) -> bool:
        architecture, pretrained = _parse(spec)
        return architecture.startswith(_HUB) or bool(pretrained and not os.path.isfile(pretrained))

    def catalogue(self) -> list[str]:
        import open_clip

        return [f"{_PREFIX}{name}:{tag}" for name, tag in open_clip.list_pretrained()]


def _settings(preprocess: Mapping[str, Any]) -> dict[str, object]:
    """Returns open_clip's preprocessing under the names of timm."""
    size, mode = preprocess["size"], preprocess["resize_mode"]
    return {
        **{name: preprocess[name] for name in ("mean", "std", "interpolation")},
        "input_size": int(size if isinstance(size, int) else size[0]),
        "crop_pct": 1.0,
        "crop_mode": {"squash": "squash", "longest": "border"}.get(mode, "center"),
    }


def _parse(spec: str) -> tuple[str, str | None]:
    """Returns open_clip's arguments for an entry: (model name with its schema, weights or None)."""
    identifier = spec.removeprefix(_PREFIX)
    if os.path.isdir(identifier):
        return f"local-dir:{identifier}", None
    if identifier.startswith(_HUB):
        return identifier, None
    architecture, _, pretrained = identifier.partition(":")
    return architecture, pretrained


def class_prompts(taxonomy: Taxonomy) -> Prompts:
    """Returns the name of the class that each output stands for, and the templates of its prompts.

    If ImageNet's 1000 classes include all classes of the taxonomy, the outputs are ImageNet's
    classes; otherwise they are the taxonomy's.

    Of a taxonomy's class, it is the first name. If two classes share that name, it is all names
    with the superclass: `crane bird` and `crane`. Raises ValueError if the taxonomy's column index
    does not cover all outputs.
    """
    import open_clip

    if taxonomy.is_of_imagenet:
        return open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    if taxonomy.outputs is not None:
        if set(taxonomy.outputs) != set(range(len(taxonomy.outputs))):
            raise ValueError(
                "a zero-shot model has exactly one output per class, but the taxonomy's column "
                "index leaves some outputs out"
            )
        order = np.argsort(taxonomy.outputs)
        taxonomy = dataclasses.replace(
            taxonomy,
            labels=tuple(taxonomy.labels[i] for i in order),
            class_names=tuple(taxonomy.class_names[i] for i in order),
        )
    names = [words.split(", ") for words in taxonomy.class_names]
    shared = collections.Counter(words[0] for words in names)
    superclasses = [taxonomy.names[one] if one != OUTSIDE else "" for one in taxonomy.labels]
    classes = [
        words[0] if shared[words[0]] == 1 else " ".join([*words, superclass]).rstrip()
        for words, superclass in zip(names, superclasses, strict=True)
    ]
    return classes, open_clip.SIMPLE_IMAGENET_TEMPLATES


def _kept_head(digest: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Returns a head that was kept, or else computes it and keeps it if the folder permits."""
    kept, file = Store(os.path.join(torch.hub.get_dir(), "in9")), f"{digest}.safetensors"
    with contextlib.suppress(Exception):  # A broken file is as good as none.
        return load(kept.read(file, None))["head"]
    head = compute()
    with contextlib.suppress(OSError):
        kept.write(file, save({"head": head}))
    return head


def _head(spec: str, model: Any, tokenizer: Any, prompts: Prompts) -> torch.Tensor:
    """Computes mean directions of prompts, times logit scale: (classes, width) float32."""
    import open_clip

    if model.logit_scale.numel() != 1:
        raise JobError(f"{spec} has {model.logit_scale.numel()} logit scales, not one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    weights = open_clip.build_zero_shot_classifier(model, tokenizer, *prompts, device=device)
    model.to("cpu")
    head: torch.Tensor = weights.T.float().cpu() * model.logit_scale.exp()
    return head.contiguous()
