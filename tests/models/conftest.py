"""Models of kinds that need more than a file."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runs import made_once
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with a small CLIP model, as open_clip reads it.

    Its head is kept in a folder that all test processes share.
    """
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    written = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    # Computed anew in each run of the tests, and not taken from an earlier one.
    root = made_once(tmp_path_factory, "torch", Path.mkdir)
    few = open_clip.OPENAI_IMAGENET_TEMPLATES[::10]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(root))
        # With all 80 templates, 80,000 texts would be tokenized.
        patch.setattr(open_clip, "OPENAI_IMAGENET_TEMPLATES", few)
        yield folder


MY_MODELS = """
import torch

def plain():
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
                              torch.nn.Dropout(0.5), torch.nn.Linear(12, 9))
    return net.half()

def described():
    return plain(), {"input_size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}

def misdescribed():
    return plain(), {"size": 64}

def of_no_size():
    return plain(), {"input_size": -1}

def of_any_size():
    return plain(), {"input_size": float("inf")}

def number():
    return 7

def failing():
    raise FileNotFoundError("no weights\\nthere")

def features():
    return torch.nn.Conv2d(3, 9, 3)
"""


@pytest.fixture
def my_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a user's module on the path."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "my_models.py").write_text(MY_MODELS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return "my_models"


@pytest.fixture
def torchvision_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Random SqueezeNet, saved where torchvision looks for fetched weights."""
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(0)
    module = squeezenet1_1().eval()
    torch.save(module.state_dict(), folder / Path(SqueezeNet1_1_Weights.DEFAULT.url).name)
    return module
