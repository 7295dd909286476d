"""Tests checkpoints that say what they were trained on, and the share that is held out."""

import shutil
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import dataset_in
from safetensors.torch import load_file, save_file

from pipeline.dataset.folder import selected_rows, training_pictures
from pipeline.errors import JobError, UsageError
from pipeline.models import checkpoint
from pipeline.models.checkpoint import TrainedOn, metadata_of_entry, read_metadata, save_checkpoint
from pipeline.models.identity import Preprocessing
from pipeline.models.library_names import read_state
from pipeline.models.registry import check_fit, load_model
from pipeline.storage.store import Store
from pipeline.training.loop import read_state_file
from transforms.selection import held_out
from transforms.taxonomy import imagenet9
from transforms.variants import with_replicates

HALF = Preprocessing(64, False, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5), "bicubic", 0.9, "center")


def trained(**changes: object) -> TrainedOn:
    fields = {
        "architecture": "resnet10t",
        "variant": "mixed_rand",
        "dataset": "d" * 32,
        "split": "val",
        "classes": "c" * 16,
        "preprocessing": HALF,
        "keys": ("a", "b\u00fc", "c\udcff"),
        "epochs": 3,
        "holdout": 0.5,
        "settings": {"lr": 0.1},
    }
    return TrainedOn(**{**fields, **changes})


def test_a_checkpoint_is_read_back_and_is_a_model_with_its_own_preprocessing(
    tmp_path: Path,
) -> None:
    module = timm.create_model("resnet10t", num_classes=9)
    store = Store(str(tmp_path))
    first = save_checkpoint(store, "m/x.safetensors", module.state_dict(), trained())
    again = save_checkpoint(store, "m/y.safetensors", module.state_dict(), trained())
    assert first.sha256 == again.sha256
    path = store.path("m/x.safetensors")
    assert read_metadata(path) == trained()
    assert metadata_of_entry(f"resnet10t={path}") == trained()
    assert metadata_of_entry("resnet10t") is None
    model = load_model(f"resnet10t={path}")
    # The nine outputs alone would suggest the authors' mean and standard deviation.
    assert model.preprocessing == HALF
    for name, value in module.state_dict().items():
        assert torch.equal(value, model.module.state_dict()[name])


def test_other_files_say_nothing_and_broken_notes_are_errors(tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file({"x": torch.zeros(2)}, plain)
    assert read_metadata(str(plain)) is None
    (tmp_path / "cut.safetensors").write_bytes(plain.read_bytes()[:5])
    assert read_metadata(str(tmp_path / "cut.safetensors")) is None
    store = Store(str(tmp_path))
    save_checkpoint(store, "m.safetensors", {"x": torch.zeros(2)}, trained(keys=("a", "b")))
    data = (tmp_path / "m.safetensors").read_bytes()
    digest = trained(keys=("a", "b")).keys_digest.encode()
    (tmp_path / "m.safetensors").write_bytes(data.replace(digest, digest[::-1]))
    with pytest.raises(JobError, match="do not match their digest"):
        read_metadata(str(tmp_path / "m.safetensors"))
    for old, new in (
        (b"imagenet9 checkpoint", b"imagenet8 checkpoint"),
        (b'_version\\": 1', b'_version\\": 2'),
    ):
        assert data.count(old) == 1
        (tmp_path / "m.safetensors").write_bytes(data.replace(old, new))
        with pytest.raises(JobError, match="which is not supported"):
            read_metadata(str(tmp_path / "m.safetensors"))
    assert load_file(tmp_path / "m.safetensors")["x"].shape == (2,)
    for header in ('{"__metadata__": []}', '{"__metadata__": {"in9": "[]"}}'):
        path = tmp_path / "forged.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
        with pytest.raises(JobError, match="broken training metadata"):
            metadata_of_entry(f"resnet10t={path}")
    path.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    assert metadata_of_entry(f"resnet10t={path}") is None


def test_a_whole_model_is_refused_with_two_ways_out(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save(torch.nn.Linear(2, 9), path)
    ways = r"save its tensors alone, torch.save\(.*, or load it in a function of your own, python:"
    with pytest.raises(UsageError, match=f"--models resnet10t={path}: {path} holds.*{ways}"):
        check_fit(f"resnet10t={path}", imagenet9())
    with pytest.raises(JobError, match=f"{path} holds objects besides tensors.*{ways}"):
        read_state(str(path))


def test_little_that_unpacks_to_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path = Store(str(tmp_path)), str(tmp_path / "m.safetensors")
    keys = ("a" * 500, "b" * 500)
    save_checkpoint(store, "m.safetensors", {"x": torch.zeros(2)}, trained(keys=keys))
    monkeypatch.setattr(checkpoint, "_MAX_KEYS", 1001)
    assert read_metadata(path) == trained(keys=keys)
    monkeypatch.setattr(checkpoint, "_MAX_KEYS", 1000)
    with pytest.raises(JobError, match="keys of its training images exceed 1000 bytes"):
        read_metadata(path)
    with pytest.raises(JobError, match="2 training images take 1001 bytes"):
        save_checkpoint(store, "m.safetensors", {"x": torch.zeros(2)}, trained(keys=keys))
    # The same for the tensors themselves.
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed"
    torch.save({"fc.weight": torch.zeros(9, 100_000)}, plain)
    assert read_state(str(plain))["fc.weight"].shape == (9, 100_000)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert packed.stat().st_size < 10_000
    assert torch.load(packed)["fc.weight"].shape == (9, 100_000)
    shutil.copy(packed, tmp_path / "state.pth")
    with pytest.raises(JobError, match="packed has compressed members"):
        read_state(str(packed))
    with pytest.raises(JobError, match=r"state\.pth cannot be read"):
        read_state_file(store)
    plain.write_bytes(plain.read_bytes()[:-100])
    with pytest.raises(JobError, match="not a whole PyTorch file"):
        read_state(str(plain))
    torch.save({"fc.weight": torch.zeros(1).expand(9, 100_000)}, plain)
    with pytest.raises(JobError, match=r"'fc.weight' does not hold all of its values"):
        read_state(str(plain))


@given(st.lists(st.text(max_size=3), max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_units_are_never_divided_and_larger_shares_hold_out_more(
    units: list[str], first: float, second: float
) -> None:
    small, large = sorted((first, second))
    few, many = held_out(units, small), held_out(units, large)
    assert not (few & ~many).any()
    assert len({(unit, bool(out)) for unit, out in zip(units, few, strict=True)}) == len(set(units))
    assert held_out(units, 1.0).all()
    assert not held_out(units, 0.0).any()


def test_training_pictures_show_nothing_that_is_held_out(three_draws: Path) -> None:
    replicated = dataset_in(three_draws)
    holdout = 0.5
    tested = {row["key"] for row in selected_rows(replicated, "val", holdout)}
    rows = {row["key"]: row for row in selected_rows(replicated, "val")}
    assert 0 < len(tested) < len(rows)
    assert list(training_pictures(replicated, "val", "original", holdout)) == [
        key for key in rows if key not in tested
    ]
    used = set()
    chosen = training_pictures(replicated, "val", "mixed_rand", holdout)
    draws = with_replicates(("mixed_rand",), 3)
    for key, row in rows.items():
        allowed = [name for name in draws if row[f"{name}_bg_key"] not in tested]
        expected = allowed[0] if allowed and key not in tested else None
        assert chosen.get(key) == expected
        used.add(expected)
    # Replicates exist for this case: the first draw shows a background that is held out.
    assert used & {*draws[1:]}
    without_holdout = training_pictures(replicated, "val", "mixed_rand", 0)
    assert without_holdout == dict.fromkeys(rows, draws[0])
