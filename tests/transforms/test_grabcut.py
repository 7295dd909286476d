"""Tests the kernels of GrabCut against OpenCV, which defines what is right."""

import hashlib
import math
import multiprocessing
import os
import pickle
import pwd
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from processor import without_avx512
from runs import everything, run_program, run_python

from pipeline.dataset.folder import sample_folder
from transforms.codec import decode_image
from transforms.grabcut import Unsupported, cache, grabcut, interface, prepare
from transforms.grabcut.__main__ import main

Image = NDArray[np.uint8]
Rect = tuple[int, int, int, int]

MOST = 48
SAMPLE = sorted(Path(sample_folder()).glob("val/*/*.JPEG"))[::9]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    """Loads the kernels. If this module imported them, each test process would compile them."""
    prepare()


@given(st.floats(-800, 0, width=32), st.floats(2**-120, 2**120, width=32))
def test_series_are_as_exact_as_they_say(below_zero: float, positive: float) -> None:
    from transforms.grabcut import compilation

    # As Python computes them, because compiling them takes seconds.
    exp, log = (getattr(compilation, name).py_func for name in ("exp_below_zero", "log"))
    assert exp(np.float32(below_zero)) == pytest.approx(math.exp(below_zero), rel=0, abs=2e-7)
    assert log(np.float32(positive)) == pytest.approx(math.log(positive), rel=2e-7, abs=2e-7)


def opencv(image: Image, rect: Rect, iterations: int = 5, seed: int = 0) -> Image | None:
    """Returns OpenCV's mask, or None if it raises."""
    mask = np.zeros(image.shape[:2], np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(seed)
    try:
        cv2.grabCut(image, mask, rect, *models, iterations, cv2.GC_INIT_WITH_RECT)
    except cv2.error:
        return None
    return mask


def ours(image: Image, rect: Rect, iterations: int = 5, seed: int = 0) -> Image | None:
    """Returns the kernels' mask, or None if they decline."""
    try:
        return grabcut(image, rect, iterations=iterations, seed=seed)
    except Unsupported:
        return None


def paint(kind: str, height: int, width: int, random: np.random.Generator) -> Image:
    """Paints a picture of this kind; natural ones are crops of the sample."""
    if kind == "flat":
        return np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    if kind == "halves":
        picture = np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
        picture[: height // 2] = random.integers(0, 256, 3)
        return picture
    if kind == "two colours":
        is_first = random.random((height, width, 1)) < random.random()
        first, second = random.integers(0, 256, (2, 3))
        return np.where(is_first, first, second).astype(np.uint8)
    if kind == "noise":
        return random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    source = decode_image(SAMPLE[random.integers(len(SAMPLE))].read_bytes())
    y, x = (random.integers(0, side - MOST) for side in source.shape[:2])
    crop = source[y : y + height, x : x + width]
    if kind == "grey":
        return np.repeat(crop.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    if kind == "posterised":
        return crop // 64 * 64
    return crop


KINDS = ("crop", "grey", "posterised", "two colours", "halves", "flat", "noise")


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Image, Rect]:
    """Draws a picture and a rectangle, which may touch its borders or reach beyond them."""
    height, width = draw(st.integers(1, MOST)), draw(st.integers(1, MOST))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    picture = paint(draw(st.sampled_from(KINDS)), height, width, random)
    x, y = draw(st.integers(-2, width - 1)), draw(st.integers(-2, height - 1))
    return picture, (x, y, draw(st.integers(1, width + 2)), draw(st.integers(1, height + 2)))


@given(pictures(), st.integers(0, 6), st.integers(-3, 3))
@settings(max_examples=800)
def test_masks_are_those_of_opencv(sized: tuple[Image, Rect], iterations: int, seed: int) -> None:
    image, rect = sized
    expected = opencv(image, rect, iterations, seed)
    actual = ours(image, rect, iterations, seed)
    assert (expected is None) == (actual is None)
    if expected is not None and not np.array_equal(actual, expected):
        assert_no_cut_is_better(image, rect, iterations, seed)


def assert_no_cut_is_better(image: Image, rect: Rect, iterations: int, seed: int) -> None:
    """Checks the first iteration after which masks differ: OpenCV's is no better cut of our graph.

    If the minimum cut is not unique, OpenCV leaves each free pixel in the tree in which it was
    last, and its mask may then be no minimum cut at all.
    """
    from transforms.grabcut import iteration
    from transforms.grabcut.max_flow import minimum_cut

    graphs: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []

    def cut(
        residual: NDArray[np.int32], is_open: Image, excess: NDArray[np.int32], *rest: Any
    ) -> int:
        graphs.append((residual.reshape(-1, 8).astype(np.int64), excess.astype(np.int64)))
        return int(minimum_cut(residual, is_open, excess, *rest))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iteration, "minimum_cut", cut)
        differing = next(
            masks
            for count in range(1, iterations + 1)
            if not np.array_equal(*(masks := cut_twice(image, rect, count, seed)))
        )
    residual, excess = graphs[-1]
    stride = differing[0].shape[1] + 2
    steps = (-stride - 1, -stride, 1 - stride, -1, 1, stride - 1, stride, stride + 1)
    costs = []
    for mask in differing:
        is_source = np.pad(mask == cv2.GC_PR_FGD, 1).ravel()
        cost = excess[~is_source & (excess > 0)].sum() - excess[is_source & (excess < 0)].sum()
        for arc, step in enumerate(steps):
            cost += residual[is_source & ~np.roll(is_source, -step), arc].sum()
        costs.append(cost)
    assert costs[1] <= costs[0]


def cut_twice(image: Image, rect: Rect, iterations: int, seed: int) -> tuple[Image, Image]:
    """Returns what OpenCV and the kernels make of the pixels within a rectangle."""
    sides = zip(rect[:2], rect[2:], strict=True)
    x, y = (slice(max(start, 0), start + size) for start, size in sides)
    masks = opencv(image, rect, iterations, seed), ours(image, rect, iterations, seed)
    first, second = (mask[y, x] for mask in masks if mask is not None)
    return first, second


def test_a_cut_that_is_not_unique_is_ours() -> None:
    row = [(0, 64, 64), *[(0, 64, 0)] * 2, *[(0, 64, 64)] * 3, *[(64, 64, 64)] * 2]
    image, rect = np.array([row], np.uint8), (1, 0, 6, 1)
    assert not np.array_equal(*cut_twice(image, rect, 1, 0))
    assert_no_cut_is_better(image, rect, 1, 0)


def test_masks_do_not_depend_on_the_vector_instructions() -> None:
    masks = "".join(hashlib.sha256(mask.tobytes()).hexdigest() for mask in sample_masks())
    code = (
        "import hashlib\n"
        "from test_grabcut import sample_masks\n"
        "for mask in sample_masks(): print(end=hashlib.sha256(mask.tobytes()).hexdigest())\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(runs.__file__).parent)])
    assert run_python(code, PYTHONPATH=path, **without_avx512()).stdout == masks


def sample_masks() -> Iterator[Image]:
    """Yields masks of pictures of the sample, with a rectangle in the middle."""
    for path in SAMPLE:
        image = decode_image(path.read_bytes())
        height, width = image.shape[:2]
        yield grabcut(image, (width // 6, height // 6, 2 * width // 3, 2 * height // 3))


def test_memory_layout_does_not_matter_and_opencvs_generator_is_left_alone() -> None:
    image = paint("crop", 40, 40, np.random.default_rng(1))
    rect = (5, 5, 25, 30)
    cv2.setRNGSeed(7)
    expected = grabcut(image, rect)
    drawn = cv2.randu(np.zeros((2, 2), np.uint8), 0, 255).tolist()
    cv2.setRNGSeed(7)
    assert drawn == cv2.randu(np.zeros((2, 2), np.uint8), 0, 255).tolist()
    frozen = image.copy()
    frozen.flags.writeable = False
    for same in (np.asfortranarray(image), frozen, np.ascontiguousarray(image[::-1])[::-1]):
        np.testing.assert_array_equal(grabcut(same, rect), expected)
    np.testing.assert_array_equal(grabcut(image, np.array(rect)), expected)


def test_threads_do_not_disturb_each_other() -> None:
    random = np.random.default_rng(2)
    images = [paint("crop", 40 + i % 8, 48 - i % 5, random) for i in range(24)]
    expected = [grabcut(image, (3, 4, 30, 31)) for image in images]
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda image: grabcut(image, (3, 4, 30, 31)), images * 3))
    for mask, other in zip(masks, expected * 3, strict=True):
        np.testing.assert_array_equal(mask, other)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": np.zeros((5, 5, 3), np.float32)}, "float32"),
        ({"image": np.zeros((5, 5, 4), np.uint8)}, r"\(5, 5, 4\)"),
        ({"image": np.zeros((0, 5, 3), np.uint8)}, r"\(0, 5, 3\)"),
        ({"rect": (1, 1, 2)}, r"\(1, 1, 2\)"),
        ({"rect": (1, 1, 2, 2**31)}, "2147483648"),
        ({"iterations": -1}, "-1"),
        ({"seed": 2**31}, "2147483648"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], named: str) -> None:
    arguments = {"image": np.zeros((5, 5, 3), np.uint8), "rect": (1, 1, 2, 2), **change}
    with pytest.raises(ValueError, match=named) as caught:
        grabcut(**arguments)
    assert not isinstance(caught.value, Unsupported)


@pytest.mark.parametrize(
    "rect", [(0, 0, 5, 4), (-1, -1, 9, 9), (1, 1, 0, 2), (1, 1, 2, -1), (5, 0, 2, 2), (0, 9, 2, 2)]
)
def test_rectangles_that_opencv_refuses_are_unserved(rect: Rect) -> None:
    image = paint("noise", 4, 5, np.random.default_rng(0))
    assert opencv(image, rect) is None
    with pytest.raises(Unsupported, match=r"5 x 4 .* rect \("):
        grabcut(image, rect)


def test_a_search_that_is_too_deep_is_unserved(monkeypatch: pytest.MonkeyPatch) -> None:
    from transforms.grabcut import iteration

    monkeypatch.setattr(iteration, "DEEPEST", 2)
    image = paint("crop", 40, 40, np.random.default_rng(1))
    with pytest.raises(Unsupported, match="more than 2 levels"):
        grabcut(image, (5, 5, 25, 30))


def _load_slowly(folder: Path) -> None:
    """Loads kernels as `prepare` does in a new process, with a short sleep for the compilation."""

    def note_compilation() -> None:
        with (folder / "compilations").open("a") as log:
            log.write("x")

    os.environ["IN9_CACHE_DIR"] = str(folder)
    interface._import_kernels = lambda _: time.sleep(0.3)
    interface._load(note_compilation)


def test_of_many_processes_one_compiles(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_load_slowly, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "compilations").read_text() == "x"


def test_a_new_process_compiles_and_writes_nothing() -> None:
    prepare()
    before = everything(cache.code_folder())
    code = (
        "import sys, transforms.grabcut as package\n"
        "assert 'numba' not in sys.modules\n"
        "package.prepare(lambda: sys.exit('compiles'))\n"
    )
    run_python(code)
    assert everything(cache.code_folder()) == before


def test_changed_sources_have_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    hashes = set()
    for source in ("a = 1", "a = 2"):
        (tmp_path / "max_flow.py").write_text(source)
        hashes.add(cache.code_hash.__wrapped__())
    assert len(hashes) == 2


def test_the_kernels_lie_in_the_users_cache_or_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IN9_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as patched:
        patched.setattr(pwd, "getpwuid", {}.__getitem__)
        patched.chdir(tmp_path)
        with pytest.raises(OSError, match="no absolute path"):
            cache.claim(cache.code_folder())
        assert not list(tmp_path.iterdir())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.code_folder().parent == tmp_path / "home" / ".cache" / "imagenet9-pipeline"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.code_folder().parent == tmp_path / "xdg" / "imagenet9-pipeline"
    monkeypatch.setenv("IN9_CACHE_DIR", str(tmp_path / "own"))
    assert cache.code_folder().parent == tmp_path / "own"


class _Planted:
    """Code in a cache that ends the process that loads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (77,)


def _plant(folder: Path) -> Path:
    """Makes a complete cache of planted code in a folder."""
    prepare()
    planted = folder / cache.code_folder().name
    planted.mkdir(parents=True, mode=0o700)
    for path in cache.Locator.folder.glob("*.nbi"):
        (planted / path.name).write_bytes(pickle.dumps(_Planted()))
    cache.complete(planted)
    return planted


def _link(cache_dir: Path) -> Path:
    """Makes a link to a link to the cache; all may write to the folder of the second."""
    shared, first = (cache_dir.parents[1] / name for name in ("shared", "first"))
    shared.mkdir()
    (shared / "link").symlink_to(cache_dir)
    shared.chmod(0o777)
    first.symlink_to("shared/link")
    return first


PLACES: dict[str, Callable[[Path], Path | None]] = {
    "of somebody else": lambda folder: os.chown(folder, 4242, -1),
    "below a sticky folder of somebody else": lambda folder: (
        folder.parent.chmod(0o1777) or os.chown(folder.parent, 4242, -1)
    ),
    "writable by all": lambda folder: folder.chmod(0o777),
    "below a folder of a group": lambda folder: folder.parent.chmod(0o770),
    "with code in a sticky folder": lambda folder: next(folder.iterdir()).chmod(0o1777),
    "behind a link that others can replace": _link,
    "relative": lambda folder: Path(os.path.relpath(folder)),
}
"""Makes a cache one that others can change; returns its place if that is another one."""


@pytest.mark.parametrize("place", PLACES)
def test_a_cache_that_others_can_change_is_neither_read_nor_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache_dir = tmp_path / "above" / "cache"
    _plant(cache_dir)
    if "somebody else" in place and os.geteuid():
        pytest.skip("only root can give a folder away")
    monkeypatch.setenv("IN9_CACHE_DIR", str(PLACES[place](cache_dir) or cache_dir))
    before, folders = everything(tmp_path), []
    monkeypatch.setattr(interface, "_import_kernels", folders.append)
    _, is_kept = interface._load(lambda: pytest.fail("is said to be compiled for all"))
    assert not is_kept
    (temporary,) = folders
    assert tmp_path not in temporary.parents
    assert not temporary.exists()
    assert everything(tmp_path) == before
    (record,) = caplog.records
    assert str(cache.code_folder()) in record.getMessage()
    assert "IN9_CACHE_DIR" in record.getMessage()


def test_planted_code_does_not_run(tmp_path: Path) -> None:
    cache_dir, temporary = _plant(tmp_path / "cache").parent, tmp_path / "tmp"
    temporary.mkdir()
    # The second mode shows that the code would run if the folder were trusted.
    said = {}
    for mode, code in ((0o777, 1), (0o700, 77)):
        for folder in (cache_dir, temporary):
            folder.chmod(mode)
        variables = {"IN9_CACHE_DIR": str(cache_dir), "TMPDIR": str(temporary)}
        words = (sys.executable, "-m", "transforms.grabcut")
        said[mode] = run_program(*words, code=code, **variables).stderr
    # No folder can hold compiled code, so OpenCV would take over.
    found = rf"{temporary}: others may write to it, .*{cache_dir}: others may"
    assert re.search(found, said[0o777])


def test_links_and_sticky_folders_of_ones_own_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("real/../real")
    (tmp_path / "real").mkdir(mode=0o755)
    cache.claim(tmp_path / "link" / "new" / "newer")
    assert (tmp_path / "real" / "new" / "newer").stat().st_mode & 0o777 == 0o700
    with tempfile.TemporaryDirectory(dir="/tmp") as below_sticky:
        assert Path("/tmp").stat().st_mode & 0o1777 == 0o1777
        cache.claim(Path(below_sticky))
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"):
        cache.claim(tmp_path / "round" / "cache")


@pytest.mark.parametrize(
    "damage", ["cut", "gone", "beside a foreign file", "of somebody else", "open to all"]
)
def test_a_damaged_cache_is_compiled_anew(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IN9_CACHE_DIR", str(tmp_path))

    def compile_all(folder: Path) -> None:
        for name in ("a.nbi", "a.1.nbc"):
            if not (folder / name).exists():
                (folder / name).write_bytes(b"compiled")
                (folder / name).chmod(0o664)

    monkeypatch.setattr(interface, "_import_kernels", compile_all)
    compilations: list[None] = []
    interface._load(lambda: compilations.append(None))
    interface._load(lambda: compilations.append(None))
    assert len(compilations) == 1
    code = cache.code_folder() / "a.1.nbc"
    if damage == "gone":
        code.unlink()
    elif damage == "beside a foreign file":
        (code.parent / "\udcff.nbi").write_bytes(b"")
    elif damage == "open to all":
        code.chmod(0o666)
    elif damage == "of somebody else":
        if os.geteuid():
            pytest.skip("only root can give a file away")
        os.chown(code, 4242, -1)
    else:
        code.write_bytes(b"comp")
    for _ in range(2):
        _, is_kept = interface._load(lambda: compilations.append(None))
        assert is_kept
    assert len(compilations) == 2
    assert code.read_bytes() == b"compiled"
    assert str(cache.code_folder()) in caplog.text


def test_a_machine_without_numba_says_so() -> None:
    code = (
        "import sys; sys.modules['llvmlite'] = sys.modules['numba'] = None\n"
        "import numpy, transforms.grabcut as package\n"
        "for call in (package.prepare, package.prepare,\n"
        "             lambda: package.grabcut(numpy.zeros((5, 5, 3), 'u1'), (1, 1, 2, 2))):\n"
        "    try: call()\n"
        "    except package.Unavailable as error: print(error)\n"
    )
    assert run_python(code).stdout.count("numba cannot be imported") == 3


def test_kernels_are_compiled_ahead_if_they_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main()
    assert "are ready" in capsys.readouterr().err
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    monkeypatch.setattr(interface, "_loaded", [])
    with pytest.raises(SystemExit, match="NUMBA_DISABLE_JIT is set"):
        main()
    monkeypatch.setenv("IN9_CACHE_DIR", "/dev/null/in9")
    monkeypatch.setattr(interface, "_import_kernels", lambda _: None)
    monkeypatch.setattr(interface, "_loaded", [])
    with pytest.raises(SystemExit, match="not kept"):
        main()
