"""Tests families of models: labels with `#`, wildcards for seeds, and what is refused."""

import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import onnx
import pytest
from answer_files import answer_files, entry
from gcs import BUCKET
from runs import ONE, QUICK, refusal, run_here, run_in9, table_of
from small_models import checkpoint, export, network, vit

from pipeline.dataset.folder import sample_folder
from pipeline.errors import UsageError
from pipeline.models.expand import expand_models, split_labels
from pipeline.storage.store import Store
from transforms.scoring import CLOSED_CHOICE
from transforms.taxonomy import IN9_NAMES

pytestmark = pytest.mark.usefixtures("no_figures")


def lines(label: str, entry: str) -> dict[str, str]:
    """Returns the labels that an entry with a label gives to other entries."""
    entries, labels = split_labels([f"{label}:={entry}"])
    assert entries == list(labels)
    return labels


@pytest.mark.parametrize("entry", [
    *("answers:a.csv", "python:m:f", "onnx:a.onnx", "hf:microsoft/resnet-50", "resnet50"),
    *("torchvision:resnet50", "open_clip:ViT-B-32:a", "efficientnet_lite0", "resnet50=a#1.pth"),
])  # fmt: skip
def test_any_entry_may_be_a_seed_also_in_a_file_with_comments(entry: str, tmp_path: Path) -> None:
    file = tmp_path / "models.txt"
    file.write_text(f"# ours\nmy erm#0:={entry}  # the first\n\nresnet18#\n")
    entries, labels = split_labels([f"@{file}"])
    assert entries == [entry, "resnet18#"]
    assert labels == {entry: "my erm#0"}


@pytest.mark.parametrize("label", [
    *("#", "#1", "erm#", "erm #1", "erm# 1", "erm#1#2", "erm##1", "erm#*", "e/m#1", "erm#1=2"),
    *("", "a/b", "a,b", "a=b", "a:b", "a\nb", "a\x1bb", "taken"),
])  # fmt: skip
def test_a_label_is_a_name_of_its_own_or_has_a_family_and_a_seed(label: str) -> None:
    for line in (f"{label}:=resnet50", "other:=resnet18", "other:="):
        with pytest.raises(UsageError) as refused:
            split_labels(["taken:=resnet18", line])
        said = str(refused.value)
        assert f"{line}: a label is a name of its own without = : /" in said
        assert ("one of a family is FAMILY#SEED, or FAMILY#" in said) == ("#" in line)


@pytest.mark.parametrize("where", ["local", "gs"])
@pytest.mark.parametrize(("kind", "path"), [
    *(("resnet50=", "seed*/model.safetensors"), ("answers:", "[a]-*.csv"), ("onnx:", "*/a?.onnx")),
])  # fmt: skip
def test_a_star_stands_for_seeds_in_natural_order(
    where: str, kind: str, path: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = str(tmp_path / "runs [1]")
    if where == "gs":
        request.getfixturevalue("server")
        root = f"gs://{BUCKET}/{tmp_path.name}"
    store, names = Store.at(root), ("10", "2", "x.1", "x.10", "x.9")
    for name in names:
        store.write(path.replace("*", name), b"x")
        store.write(path.replace("*", f"{name}/old") + "/deeper", b"x")
    assert list(lines("erm#*", f"{kind}{root}//./{path}").items()) == [
        (f"{kind}{root}//./{path.replace('*', name)}", f"erm#{name}")
        for name in ("2", "10", "x.1", "x.9", "x.10")
    ]


def test_links_and_relative_paths_lead_to_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "m.pth").touch()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "s1").symlink_to(tmp_path / "disk")
    assert lines("erm#*", "resnet50=runs/s*/m.pth") == {"resnet50=runs/s1/m.pth": "erm#1"}
    assert lines("erm#*", "resnet50=*/m.pth") == {"resnet50=disk/m.pth": "erm#disk"}
    # Without a label, a path may contain a star.
    assert expand_models(split_labels(["resnet50=runs/s*/m.pth"])[0]) == ("resnet50=runs/s*/m.pth",)


ONE_STAR = r"or FAMILY#\* before one \* in the path of ARCH=FILE, onnx:FILE or answers:FILE"


@pytest.mark.parametrize(("line", "says"), [
    ("erm#*:=resnet50={}/none*.pth", "there is no such file"),
    ("erm#*:=resnet50={}/*", "there is no such file"),
    ("erm#*:=resnet50={}/r*.pth", "there is no such file"),
    ("erm#*:=resnet50={}/*/*.pth", ONE_STAR),
    ("erm#*:=resnet50={}/**.pth", ONE_STAR),
    ("erm#*:=resnet50={}/runs/1.pth", ONE_STAR),
    ("erm#*:=resnet*", ONE_STAR),
    ("all:=resnet*", "names one model, not several"),
    ("erm#*:=python:a:*", ONE_STAR),
    ("erm#*:=@{}/*", ONE_STAR),
    ("erm:=resnet50={}/runs/*.pth", f"names one model, not several.*{ONE_STAR}"),
    ("erm#1:=resnet50={}/runs/*.pth", f"names one model, not several.*{ONE_STAR}"),
    ("erm*:=resnet50={}/runs/*.pth", f"names one model, not several.*{ONE_STAR}"),
    ("#*:=resnet50={}/runs/*.pth", ONE_STAR),
    ("a#b#*:=resnet50={}/runs/*.pth", ONE_STAR),
    ("erm#*:=answers:{}/bad/*.csv", "a label is a name of its own without = : /"),
    ("erm#*:=resnet50=gs://no-such-bucket/runs/*.pth", r"gs://no-such-bucket|no such file"),
    ("erm#*:=resnet50=s3://bucket/runs/*.pth", "s3:// is not supported"),
])  # fmt: skip
@pytest.mark.usefixtures("server")
def test_a_star_that_names_no_seeds_is_refused(line: str, says: str, tmp_path: Path) -> None:
    for name in ("runs/1.pth", "bad/lr=1.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=says) as refused:
        split_labels([line.format(tmp_path)])
    assert "\n" not in str(refused.value)


@pytest.fixture
def output(for_gaps: Path, tmp_path: Path) -> Path:
    """A dataset of 18 pictures that a test may evaluate models on."""
    return Path(shutil.copytree(for_gaps, tmp_path / "out"))


def test_files_of_answers_in_a_bucket_are_a_family(
    output: Path, tmp_path: Path, server: str
) -> None:
    root, seeds = f"gs://{BUCKET}/{tmp_path.name}", ("1", "3", "20")
    answer_files(output, tmp_path, dict.fromkeys(seeds, 0.7))
    for seed in seeds:
        content = (tmp_path / f"{seed}.csv").read_bytes()
        Store.at(root).write(f"seed{seed}/answers.csv", content)
    every = f"gpt#*:=answers:{root}/seed*/answers.csv"
    run_here("evaluate", "--dataset", output, *ONE, "--models", every)
    rows = table_of(output, "families")
    assert {(row["family"], row["label_rule"]) for row in rows} == {("gpt", CLOSED_CHOICE)}
    assert {row["members"] for row in rows} == {"gpt#1; gpt#3; gpt#20"}
    assert all(row["ci_low"] for row in rows)


def test_a_mark_is_in_no_name_of_a_file(output: Path, tmp_path: Path) -> None:
    """Checks also two kinds of entries in a family; the tests below have the others."""
    answer_files(output, tmp_path, {"0": 0.7, "1": 0.7})
    vit(tmp_path / "vit", num_labels=9, id2label=dict(enumerate(IN9_NAMES)))
    pairs = {
        "a": [entry(tmp_path, seed) for seed in ("0", "1")],
        "b": [f"hf:{tmp_path / 'vit'}", "efficientnet_lite0"],
    }
    listed = tmp_path / "models.txt"
    lines = (
        f"{family} {family}#{seed}:={one}  # a training\n"
        for family, seeds in pairs.items()
        for seed, one in enumerate(seeds)
    )
    listed.write_text("".join(lines))
    run_in9("evaluate", "--dataset", output, *ONE, "--models", f"@{listed}", figures=True)
    families = {
        row["family"]: {*row["members"].split("; ")} for row in table_of(output, "families")
    }
    assert families == {f"{x} {x}": {f"{x} {x}#0", f"{x} {x}#1"} for x in pairs}
    named = {row["model"] for row in table_of(output, "summary")}
    assert named == {f"{name} {name}#{seed}" for name in pairs for seed in (0, 1)}
    assert len([*output.glob("results/*/model.json")]) == 4
    assert not [*output.rglob("*#*")]
    page = (output / "report.html").read_text()
    beside = {unquote(link) for link in re.findall(r'(?:href|src)="(results/[^"]*)"', page)}
    assert beside
    assert [link for link in beside if not (output / link).exists()] == []
    assert r"a a\#0" in (output / "results" / "latex" / "headline.tex").read_text()


def test_commands_that_evaluate_a_seed_each_end_with_the_family(
    output: Path, tmp_path: Path
) -> None:
    for seed, members in enumerate((set(), {"erm#0; erm#1"})):
        one = checkpoint(tmp_path / f"{seed}.pth", seed=seed)
        run_here("evaluate", "--dataset", output, "--models", f"erm#{seed}:={one}", *ONE)
        assert {row["members"] for row in table_of(output, "families")} == members
    # Nothing is left to do for a command that names all of them.
    before = {path: path.stat().st_mtime_ns for path in output.glob("results/*/predictions/*")}
    every = f"erm#*:=mobilenetv3_small_050={tmp_path}/*.pth"
    run_here("evaluate", "--dataset", output, "--models", every, *ONE)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_all_commands_take_a_star(small_sample: Path, tmp_path: Path) -> None:
    for seed in (3, 20):
        checkpoint(tmp_path / f"seed{seed}.pth", seed=seed)
    every, output = f"erm#*:=mobilenetv3_small_050={tmp_path}/seed*.pth", tmp_path / "out"
    run_here("run", "--input", small_sample, *QUICK, "--output", output, "--models", every, *ONE)
    assert {row["family"] for row in table_of(output, "families")} == {"erm"}
    for flags in (("attack", "--grid", 3), ("saliency", "--maps", 1)):
        run_here(*flags, "--dataset", output, "--models", every, *ONE)
    for table in ("attack", "saliency"):
        assert {row["model"] for row in table_of(output, table)} == {"erm#3", "erm#20"}
    weights = tmp_path / "weights"
    run_here("models", "fetch", "--models", every, "--to", weights)
    assert len([*weights.glob("*.safetensors")]) == 2
    printed = [f"mobilenetv3_small_050={tmp_path}/seed{seed}.pth" for seed in (3, 20)]
    assert run_here("models", "list", "--models", every).out.splitlines() == printed
    (photo,) = Path(sample_folder()).glob("val/*/sample_val_00000016.JPEG")
    figure = tmp_path / "show.html"
    run_here("show", photo, "--box", "169,95,437,221", "--to", figure, "--models", every)
    assert figure.read_text().index("erm#3") < figure.read_text().index("erm#20")


def test_a_family_and_a_model_never_have_one_name(output: Path) -> None:
    first, second, third = (f"python:tiny_models:{name}" for name in ("first", "second", "third"))
    evaluate = ("evaluate", "--dataset", output, *ONE, "--models")
    both = f"tables would show {first} as erm, like the family of erm#1; give one of them another"
    assert both in refusal(*evaluate, f"erm:={first},erm#1:={second}")
    run_here(*evaluate, f"erm:={first}")
    assert both in refusal(*evaluate, f"erm#1:={second}")
    run_here(*evaluate, f"net:={first},erm#1:={second}")
    # A label stays until another takes its place.
    run_here(*evaluate, first)
    assert {row["model"] for row in table_of(output, "gaps")} == {"net", "erm#1"}
    taken = f"tables would show {third} as erm, like the family of erm#1; give one of them another"
    assert taken in refusal(*evaluate, f"erm:={third}")
    again = f"tables would show it as erm#1, like {second}; give it a label of its own"
    assert again in refusal(*evaluate, f"erm#1:={third}")


EQUAL = "{0}#0 and {0}#1 have equal weights, or answers; name different trainings"


def test_seeds_with_equal_files_are_refused_before_any_work(output: Path, tmp_path: Path) -> None:
    evaluate = ("evaluate", "--dataset", output, *ONE, "--models")
    answer_files(output, tmp_path, {"c0": 0.7})
    first = {
        "a": export(tmp_path / "a0.onnx", network(9), 64, {0: "n"}),
        "b": checkpoint(tmp_path / "b0.pth"),
        "c": entry(tmp_path, "c0"),
    }
    for family, suffix in (("a", "onnx"), ("b", "pth"), ("c", "csv")):
        shutil.copy(tmp_path / f"{family}0.{suffix}", tmp_path / f"{family}1.{suffix}")
    every = {
        name: f"{name}#*:={one.replace(f'{name}0.', f'{name}*.')}" for name, one in first.items()
    }
    for family in first:
        assert EQUAL.format(family) in refusal(*evaluate, every[family])
    # Also if only one of them is known.
    run_here(*evaluate, ",".join(f"{name}#0:={one}" for name, one in first.items()))
    for family in first:
        assert EQUAL.format(family) in refusal(*evaluate, every[family])
    # In two families, they may be equal.
    second = (f"{name * 2}#0:={one.replace('0.', '1.')}" for name, one in first.items())
    run_here(*evaluate, ",".join(second))


def test_seeds_that_were_loaded_before_are_refused_by_their_tensors(
    output: Path, tmp_path: Path
) -> None:
    """The files differ, as one is a state dict with a prefix."""
    first, second = checkpoint(tmp_path / "0.pth"), checkpoint(tmp_path / "1.pth", wrap=True)
    evaluate = ("evaluate", "--dataset", output, *ONE, "--models")
    run_here(*evaluate, f"{first},{second}")
    named = f"erm#0:={first},erm#1:={second}"
    assert EQUAL.format("erm") in refusal(*evaluate, named)


def test_graphs_with_weights_in_other_files_are_told_apart(output: Path, tmp_path: Path) -> None:
    for seed, weights in ((0, 0), (1, 1), (2, 1)):
        path = tmp_path / f"seed{seed}" / "net.onnx"
        path.parent.mkdir()
        export(path, network(9, weights), 64, {0: "n"})
        graph = onnx.load(path)
        onnx.save(graph, path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert len({(tmp_path / f"seed{seed}" / "net.onnx").read_bytes() for seed in (0, 1, 2)}) == 1
    evaluate = ("evaluate", "--dataset", output, *ONE, "--models")
    every = f"erm#*:=onnx:{tmp_path}/seed*/net.onnx"
    assert "erm#1 and erm#2 have equal weights" in refusal(*evaluate, every)
    shutil.rmtree(tmp_path / "seed2")
    run_here(*evaluate, every)
    assert {row["members"] for row in table_of(output, "families")} == {"erm#0; erm#1"}
    # Nor is a label a way around the refusal of files in folders that a job empties.
    kept = output / "results" / "seed1"
    shutil.copytree(tmp_path / "seed1", kept)
    for models in (f"erm#1:=onnx:{kept}/net.onnx", f"erm#*:=onnx:{output}/results/seed*/net.onnx"):
        assert f"lies in {output / 'results'}, where files are" in refusal(*evaluate, models)
