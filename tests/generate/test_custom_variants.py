"""Tests variants and fills of the user's own: their names, versions and errors."""

import io
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import JobError, UsageError
from pipeline.generate.pictures import Background, Fills, find_variants, versioned
from transforms.geometry import OutputBox
from transforms.layers import Layer
from transforms.variants import VariantName, select_variants


def test_a_variant_of_the_users_has_a_version_and_changes_no_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = ("layer.image.fill(0) or layer.image", "layer.image[::2]", "layer.image", "layer.image")
    painted = zip(("dark", "half", "Loud", "bad"), code, strict=True)
    text = "".join(f"def {name}(layer): return {expression}\n" for name, expression in painted)
    (tmp_path / "painted_here.py").write_text(f"{text}dark.version, bad.version = 3, -1")
    monkeypatch.syspath_prepend(tmp_path)
    module = "python:painted_here"
    entries = versioned(["original", f"{module}:dark", f"{module}:half@7"])
    assert entries == versioned(entries) == ("original", f"{module}:dark@3", f"{module}:half@1")
    for name, message in (
        ("Loud", "small letters"),
        ("bad", "a whole number"),
        ("no", "no function"),
    ):
        with pytest.raises(UsageError, match=f"--variants {module}:{name}: .*{message}"):
            versioned([f"{module}:{name}"])
    for entry, message in (
        (f"{module}:dark@2", "its version is 3 here"),
        ("python:gone:f@1", "worker"),
    ):
        with pytest.raises(JobError, match=message):
            find_variants([entry])
    image, variants = np.full((32, 32, 3), 9, np.uint8), find_variants(entries)
    layer = Layer(image, image, image[..., 0] > 0, OutputBox(0, 0, 9, 9))
    assert (variants[VariantName("dark")].compose(layer).any(), image.all()) == (False, True)


@pytest.fixture
def fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with fills, as `--renderings` names it."""
    (tmp_path / "filled_here.py").write_text(
        "def grey(image, hole):\n    image[hole] = 128\n    return image\n\n\n"
        "grey.version = 2\ntelea = paper = mine_r1 = Loud = grey\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "python:filled_here"


def test_a_fill_of_the_users_gives_a_variant_of_each_base(fills: str) -> None:
    entries = versioned(["original"], [f"{fills}:grey@7"])
    bases = ("mixed_same", "mixed_rand", "only_bg_t")
    assert entries[1:4] == tuple(f"{base}={fills}:grey@2" for base in bases)
    variants = find_variants(entries)
    image, tile = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    layer = Layer(image, tile, np.zeros((32, 32), np.bool_), OutputBox(0, 0, 9, 9))
    before, expected = image.copy(), image.copy()
    expected[:9, :9] = 128
    background = Background("key", layer.only_bg_t, layer)
    for base in ("mixed_same", "only_bg_t"):
        variant = variants[VariantName(base, "grey")]
        filled = Fills(io.BytesIO()).fill(variant.rendering, background)
        # Nothing of the foreground is shown, because its mask is empty.
        np.testing.assert_array_equal(variant.compose(layer, filled), expected)
    np.testing.assert_array_equal(image, before)


def test_fills_are_named_by_renderings_alone(fills: str) -> None:
    for name in ("telea", "paper", "mine_r1"):
        with pytest.raises(ValueError, match=f"_{name}' is taken"):
            select_variants(versioned([], [f"{fills}:{name}"]))
    for fill, said in (
        (f"{fills}:Loud", ": name it with small letters"),
        ("telea", " must look like python:my_fills:mean"),
        ("filled_here:grey", " must look like"),
    ):
        with pytest.raises(UsageError, match=f"--renderings {fill}{said}"):
            versioned([], [fill])
    with pytest.raises(JobError, match="its version is 2 here"):
        find_variants([f"mixed_same={fills}:grey@1"])
    for entry in (f"mixed_same={fills}:grey@2", "mixed_same=x", "=@"):
        with pytest.raises(UsageError, match=f"--variants {entry}: unknown variant"):
            versioned(["original", entry])
