"""What a job costs: core-hours, GPU-hours, bytes, requests, and from them a price.

    price = core_hours * core_hour + gpu_hours * gpu_hour
            + reads / 1000 * reads_1000 + writes / 1000 * writes_1000
    each month, for as long as it is kept: GB * gb_month

`--dry_run` fills it in with what it measures, `docs/costs.md` with `FIGURES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from pipeline.errors import UsageError
from transforms.variants import PICTURES


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Unit prices in US dollars, before any discount, and the speed of a GPU.

    Attributes:
      core_hour: a vCPU of a Dataflow batch worker with its 3.75 GB of memory, for an hour.
      gpu_hour: an NVIDIA L4 with the machine around it, `g2-standard-4`, for an hour.
      gb_month: a GB (10**9 bytes) of Standard storage in one region, for a month.
      reads_1000: a thousand requests of class B.
      writes_1000: a thousand requests of class A.
      gpu_rate: pictures that a GPU evaluates in a second; 0 if models run on the cores.
    """

    core_hour: float = 0.056 + 3.75 * 0.003557
    gpu_hour: float = 0.70
    gb_month: float = 0.02
    reads_1000: float = 0.0004
    writes_1000: float = 0.005
    gpu_rate: float = 0.0

    @classmethod
    def parse(cls, parts: Iterable[str]) -> Assumptions:
        """Reads `--assume`, such as `("core_hour=0.04", "gpu_rate=1500")`; the rest stays.

        Raises:
          UsageError: an unknown name, or a value that is no number from 0 on.

        >>> Assumptions.parse(["gpu_rate=1500"]).gpu_rate
        1500.0
        """
        known = {field.name for field in dataclasses.fields(cls)}
        given = {}
        for part in parts:
            name, _, text = part.partition("=")
            if name not in known:
                raise UsageError(f"--assume {name}: expected one of {', '.join(sorted(known))}")
            try:
                given[name] = float(text)
            except ValueError:
                given[name] = -1.0
            if not 0 <= given[name] < float("inf"):
                raise UsageError(f"--assume {name}: expected a number from 0 on, got {text!r}")
        return cls(**given)


PRICES_OF = "2026-11"
"""When the prices above were looked up: Google Cloud's public ones for us-central1."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What something takes.

    Attributes:
      core_seconds: by stage.
      gpu_seconds: of all GPUs together.
      bytes: that are stored.
      reads: requests to an object store that read an object.
      writes: requests that write, copy or list.
    """

    core_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    gpu_seconds: float = 0.0
    bytes: float = 0.0
    reads: float = 0.0
    writes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        stages = [
            *self.core_seconds,
            *(s for s in other.core_seconds if s not in self.core_seconds),
        ]
        return Cost(
            {s: self.core_seconds.get(s, 0.0) + other.core_seconds.get(s, 0.0) for s in stages},
            self.gpu_seconds + other.gpu_seconds,
            self.bytes + other.bytes,
            self.reads + other.reads,
            self.writes + other.writes,
        )

    @property
    def core_hours(self) -> float:
        """Of all stages."""
        return sum(self.core_seconds.values()) / 3600

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs together."""
        return self.gpu_seconds / 3600

    def price(self, assumed: Assumptions) -> float:
        """Dollars, once."""
        return (
            self.core_hours * assumed.core_hour
            + self.gpu_hours * assumed.gpu_hour
            + self.reads / 1000 * assumed.reads_1000
            + self.writes / 1000 * assumed.writes_1000
        )

    def price_a_month(self, assumed: Assumptions) -> float:
        """Dollars a month, for what is stored."""
        return self.bytes / 1e9 * assumed.gb_month


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one image costs.

    Attributes:
      segment_seconds: of one core, for an image that is to be segmented.
      compose_seconds: of one core, for a selected image, all variants.
      layer_bytes: of an accepted image.
      output_bytes: of a selected image, all folders.
    """

    segment_seconds: float
    compose_seconds: float
    layer_bytes: float
    output_bytes: float


READS_AN_IMAGE = 6.4
WRITES_AN_IMAGE = 0.25
"""Requests of `generate` on object storage, in and out; those of a model are far fewer."""

FIGURES = Figures(
    segment_seconds=0.035,
    compose_seconds=0.011,
    layer_bytes=187_000,
    output_bytes=414_000,
)
ACCEPTED = 0.56
EVALUATE_SECONDS = 0.034
"""These four, the share of images that the filters accept, and the core-seconds of a picture
and model (EfficientNet-Lite0), are what `benchmarks/cost_figures.py` finds on 270 pictures of
ImageNet; see `docs/costs.md`."""

GPU_RATE = 1000.0
"""Pictures a second of the table's GPU: an assumption, not a measurement."""

WORKLOADS = {
    "IN-9 val: the 370 classes' 18,500 of 50,000": 18_500,
    "IN-9 train: the 370 classes' share of 544,546": 201_482,
    "all 594,546 boxed images, were all of the nine": 594_546,
    "100 million images": 100_000_000,
}
"""Images to segment. ImageNet has 50,000 validation and 544,546 training images with boxes; the
nine classes hold 370 of its 1000, and images of others are only listed."""


def generate_cost(
    figures: Figures, images: float, accepted: float, selected: float, *, keep_layers: bool = True
) -> Cost:
    """Cost of making a dataset.

    Args:
      figures: of one image.
      images: to segment.
      accepted: those with a layer, of this job and earlier ones.
      selected: those to compose.
      keep_layers: whether layers stay.
    """
    return Cost(
        {
            "segment": images * figures.segment_seconds,
            "compose": selected * figures.compose_seconds,
        },
        bytes=selected * figures.output_bytes + keep_layers * accepted * figures.layer_bytes,
        reads=max(images, selected) * READS_AN_IMAGE,
        writes=max(images, selected) * WRITES_AN_IMAGE,
    )


def evaluate_cost(stage: str, pictures: float, core_seconds: float, gpu_rate: float) -> Cost:
    """Cost of one model's answers.

    Args:
      stage: that gives them.
      pictures: how many.
      core_seconds: of a picture, where models run on the cores.
      gpu_rate: pictures a second of a GPU, 0 if there is none.
    """
    if gpu_rate:
        return Cost(gpu_seconds=pictures / gpu_rate)
    return Cost({stage: pictures * core_seconds})


def describe_cost(cost: Cost, assumed: Assumptions) -> str:
    """Two lines for `--dry_run`: what it takes, and the price."""
    stages = ", ".join(f"{s} {number(v / 3600)}" for s, v in cost.core_seconds.items() if v)
    parts = [f"{number(cost.core_hours)} core-hours" + (f" ({stages})" if stages else "")]
    if cost.gpu_seconds:
        parts.append(f"{number(cost.gpu_hours)} GPU-hours")
    parts.append(f"{number(cost.bytes / 1e9)} GB")
    parts.append(f"{cost.reads:,.0f} reads and {cost.writes:,.0f} writes of objects")
    units = [f"{assumed.core_hour:.4g} a core-hour"]
    if cost.gpu_seconds:
        units.append(f"{assumed.gpu_hour:.4g} a GPU-hour")
    units += [
        f"{assumed.reads_1000:.4g} and {assumed.writes_1000:.4g} a thousand reads and writes",
        f"{assumed.gb_month:.4g} a GB and month",
    ]
    return (
        f"cost: {', '.join(parts)}\n"
        f"price: {dollars(cost.price(assumed))} on Dataflow and Cloud Storage, and "
        f"{dollars(cost.price_a_month(assumed))} a month of storage; in dollars, "
        f"{', '.join(units)} (assumed, as of {PRICES_OF}; others with --assume NAME=X)"
    )


def number(value: float) -> str:
    """Two or three digits: costs are known no better.

    >>> number(1388.9), number(8.26), number(0.0004), number(0)
    ('1,390', '8.3', 'under 0.01', '0')
    """
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.2g}" if value >= 0.01 or value == 0 else "under 0.01"


def dollars(value: float) -> str:
    """An amount of money.

    >>> dollars(472.9), dollars(0.354), dollars(0.001)
    ('$473', '$0.35', 'under $0.01')
    """
    if value >= 100:
        return f"${number(value)}"
    return f"${value:.2f}" if value >= 0.005 or value == 0 else "under $0.01"


def cost_tables() -> str:
    """The tables of `docs/costs.md`: what each workload takes, with one model, and its price."""
    assumed = Assumptions()
    takes = [
        "| images | segment, core-hours | compose, core-hours | a model on cores, core-hours "
        "| or on a GPU, GPU-hours | stored, GB | reads, millions | writes, millions |",
        "|---" + "|---:" * 7 + "|",
    ]
    prices = [
        "| images | the dataset | a model on cores | or on a GPU | storage, a month |",
        "|---" + "|---:" * 4 + "|",
    ]
    for name, images in WORKLOADS.items():
        selected = images * ACCEPTED
        dataset = generate_cost(FIGURES, images, selected, selected)
        pictures = selected * len(PICTURES)
        cores = evaluate_cost("evaluate", pictures, EVALUATE_SECONDS, 0.0)
        gpu = evaluate_cost("evaluate", pictures, EVALUATE_SECONDS, GPU_RATE)
        found = (
            *(dataset.core_seconds[stage] / 3600 for stage in ("segment", "compose")),
            *(cores.core_hours, gpu.gpu_hours, dataset.bytes / 1e9),
            *(dataset.reads / 1e6, dataset.writes / 1e6),
        )
        takes.append(f"| {name} | {' | '.join(map(number, found))} |")
        amounts = (
            *(cost.price(assumed) for cost in (dataset, cores, gpu)),
            dataset.price_a_month(assumed),
        )
        prices.append(f"| {name} | {' | '.join(map(dollars, amounts))} |")
    return "\n".join([*takes, "", *prices])
