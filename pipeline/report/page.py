"""Renders the page: orders the panels and claims of all analyses, and fills the templates."""

import base64
import dataclasses
import functools
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib import metadata
from urllib.parse import quote
from xml.etree import ElementTree

import jinja2
from markupsafe import Markup, escape

from pipeline.analyses import ANALYSES
from pipeline.dataset.card import notes_of, sentence
from pipeline.dataset.manifest import MANIFEST
from pipeline.display.panel import COMPARED, Claim, Finding, overall, with_models
from pipeline.display.plot import Plot
from pipeline.display.style import POINT, THEME, WIDTH
from pipeline.display.table import TIMES, listed, shorten
from pipeline.errors import escaped
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.summary import Summary
from pipeline.storage.store import Store
from transforms.hashing import text_bytes
from transforms.intervals import Verdict

_REFERENCE = re.compile(r"(?<=url\(#)|(?<=^#)")
_NAMED = re.compile(r"(?<=#)[\w.-]+")
_THOUSANDTHS = re.compile(r"(?<=\.\d\d)\d+")
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_GROWS = 1.34 / POINT
"""Largest factor by which the page enlarges a figure, chosen so that two figures fill a row."""
_COLOUR = re.compile(rf"(?:{'|'.join(THEME)})\b", re.IGNORECASE)


def inline_svg(data: bytes, prefix: str, label: str) -> Markup:
    """Turns a figure's SVG into an element, up to `_GROWS` times its own width, of the page.

    Its ids begin with `prefix`, unique within the page; `label` says what it shows. A figure wider
    than a column is of the class `spread`.
    """
    root = ElementTree.fromstring(data)
    named = set(_NAMED.findall(data.decode()))
    for element in root.iter():
        # To keep a page of many figures small, drop indentation, ids that nothing refers to, and
        # thousandths of a pixel.
        element.text, element.tail = (
            text if text and text.strip() else "" for text in (element.text, element.tail)
        )
        element.tag = _local(element.tag)
        element.attrib = {
            _local(name): _adapted(_local(name), value, prefix)
            for name, value in element.attrib.items()
            if name != "id" or value in named
        }
    box = root.attrib["viewBox"]
    width = float(box.split()[2])
    return Markup(
        '<svg role="img" class="{}" aria-label="{}" viewBox="{}" style="max-width: {}px">{}</svg>'
    ).format(
        "spread" if width > 1.1 * WIDTH * POINT else "",
        label,
        box,
        round(_GROWS * width),
        Markup("".join(ElementTree.tostring(child, encoding="unicode") for child in root)),
    )


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _adapted(name: str, value: str, prefix: str) -> str:
    """Adapts the value of an attribute to a page that holds other figures, too."""
    if name == "id":
        return prefix + value
    value = _REFERENCE.sub(prefix, value)
    if name not in ("href", "clip-path", "class"):
        value = _THOUSANDTHS.sub("", value)
    if name == "style":
        value = _FAMILY.sub("", value)
        value = _COLOUR.sub(lambda match: f"var(--{THEME[match[0].lower()]})", value)
    return value


SECTIONS = {
    1: "Is background signal enough for classification?",
    2: "Do models actually use background signals?",
    3: "How bad can it get?",
    4: "What is the effect of the training dataset?",
    5: "Are we really making progress?",
}
"""Questions of the blog post, by section number."""


@dataclasses.dataclass(frozen=True)
class CheckedClaim:
    """A claim, its findings here, and the command that produces them.

    Attributes:
      summary: the verdict in words, with counts if it is mixed.
      command: the claim's command with model names, to run in the dataset's folder.
    """

    claim: Claim
    verdict: Verdict
    summary: str
    findings: tuple[Finding, ...]
    command: str

    @property
    def is_divided(self) -> bool:
        """Whether the verdicts on its findings differ."""
        return len({finding.verdict for finding in self.findings}) > 1


def check_claims(evidence: Evidence) -> tuple[CheckedClaim, ...]:
    """Judges every claim by the results, unless it is of an analysis that the dataset cannot have.

    Returns none if the pictures or classes are not those that the claims are about.
    """
    if not evidence.dataset.is_comparable:
        return ()
    claims = [
        claim
        for analysis in ANALYSES
        if all(panel.applies(evidence) for panel in analysis.parts.panels)
        for claim in analysis.parts.claims
    ]
    return tuple(_check(claim, evidence) for claim in sorted(claims, key=lambda claim: claim.place))


def _check(claim: Claim, evidence: Evidence) -> CheckedClaim:
    findings = tuple(claim.judge(evidence))
    verdict = overall(findings)
    words = str(verdict)
    if verdict is Verdict.MIXED:
        counts = Counter(finding.verdict for finding in findings)
        first, *others = (f"{each} for {counts[each]}" for each in Verdict if counts[each])
        words = ", ".join((f"{first} of {len(findings)} {claim.of}", *others))
    return CheckedClaim(claim, verdict, words, findings, with_models(claim.command, evidence))


PANELS = sorted(
    (panel for analysis in ANALYSES for panel in analysis.parts.panels),
    key=lambda panel: panel.place,
)
"""The panels, in the order of the page."""

_TITLES = {
    **{panel.id: panel.title for panel in PANELS},
    "claims": "Claims",
    "not_run": "Not run",
    "run": "What was run",
    "files": "Files",
}
"""Title of each section, in the order of the page: results first, then what produced them."""


@dataclasses.dataclass(frozen=True)
class NotRun:
    """A command that would add to the page.

    Attributes:
      answers: what its section would say; "" if the command only decides claims.
      claims: the authors' claims that cannot be judged without it.
    """

    answers: str
    command: str
    needs: str
    claims: Sequence[str]


def find_not_run(
    evidence: Evidence, filled: Collection[str], checked: Sequence[CheckedClaim]
) -> Iterator[NotRun]:
    """Yields the commands that would add to the page."""
    if not any(images["selected"] for images in evidence.dataset.manifest.images.values()):
        # No command says anything about a dataset without images.
        return
    waiting: dict[str, list[Claim]] = {}
    for one in checked:
        if not one.findings:
            waiting.setdefault(one.command, []).append(one.claim)
    for panel in PANELS:
        if panel.answers and panel.id not in filled and panel.applies(evidence):
            command = with_models(panel.command, evidence)
            claims = [claim.text for claim in waiting.pop(command, ())]
            yield NotRun(panel.answers, command, panel.needs, claims)
    for command, unjudged in waiting.items():
        yield NotRun("", command, unjudged[0].needs, [claim.text for claim in unjudged])


@dataclasses.dataclass(frozen=True)
class Link:
    """A file or folder beside the page; `href` is its quoted relative path."""

    href: str
    name: str


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What was run.

    Attributes:
      config: the dataset's flags, given or default.
      rejections: (reason, split, number of images), most frequent first.
      models: (name, result) of each model that the page is about; the result holds what identifies
        the model.
      links: (kind, files) for each kind of files that exist.
    """

    config: dict[str, object]
    rejections: tuple[tuple[str, str, int], ...]
    models: tuple[tuple[str, Summary], ...]
    links: tuple[tuple[str, tuple[Link, ...]], ...]


def make_provenance(evidence: Evidence, figures: Sequence[str]) -> Provenance:
    """Collects the panel's content."""
    dataset, store = evidence.dataset, evidence.dataset.store
    rejections = [
        (reason, split, count)
        for split, reasons in dataset.manifest.rejections.items()
        for reason, count in reasons.items()
    ]
    groups = (
        ("Tables (CSV)", _results(store, "results", ".csv")),
        ("Tables (LaTeX)", _results(store, "results/latex", ".tex")),
        ("Figures (SVG)", _of_kind(figures, ".svg")),
        ("Figures (PDF)", _of_kind(figures, ".pdf")),
        (
            "Every prediction (Parquet)",
            (
                _link(f"results/{model.folder}/predictions/", model.name)
                for model, _ in evidence.models_with(Summary)
                if f"results/{model.folder}" not in store.elsewhere
                and store.has_folder(f"results/{model.folder}/predictions")
            ),
        ),
        (
            "The dataset (Parquet)",
            (
                _link(f"parquet/{variant}/", str(variant))
                for variant in dataset.variants
                if store.has_folder(f"parquet/{variant}")
            ),
        ),
        ("About the dataset", _metadata(store)),
    )
    return Provenance(
        config=dataset.manifest.config.flags(),
        rejections=tuple(sorted(rejections, key=lambda row: (-row[2], row[0], row[1]))),
        models=tuple((model.name, summary) for model, summary in evidence.models_with(Summary)),
        links=tuple((kind, links) for kind, group in groups if (links := tuple(group))),
    )


def _link(path: str, name: str | None = None) -> Link:
    return Link(quote(path, safe="/+=,@~"), name or path.rpartition("/")[2])


def _of_kind(paths: Iterable[str], suffix: str) -> Iterator[Link]:
    return (_link(path) for path in sorted(paths) if path.endswith(suffix))


def _results(store: Store, folder: str, suffix: str) -> Iterator[Link]:
    return _of_kind((p for p in store.walk(folder) if p.rpartition("/")[0] == folder), suffix)


def _metadata(store: Store) -> Iterator[Link]:
    files = (MANIFEST, "README.md", "croissant.json", "classes.txt")
    yield from map(_link, filter(store.exists, files))
    if store.has_folder("index"):
        yield _link("index/", "index: a row for every source image")


TEMPLATE = "report.html"
DETAILED = 4
"""Number of models whose own figures are in the page; figures of further models are only files
beside it."""
_BETWEEN_WORDS = re.compile(r"(?<=[-_./:=,+@])(?=\w)")


def render(
    evidence: Evidence, plots: Sequence[Plot], figures: Sequence[str], with_pictures: bool
) -> str:
    """Renders the page; the same evidence gives the same text."""
    environment = _environment()
    script = environment.get_template("report/report.js").render()
    evaluated, is_imagenet9 = evidence.models_with(Summary), evidence.dataset.is_imagenet9
    checked = (
        () if evidence.dataset.manifest.config.segment.keeps_image_whole else check_claims(evidence)
    )
    judged = [one for one in checked if one.findings]
    contents = {
        panel.id: content for panel in PANELS if (content := panel.make(evidence, with_pictures))
    }
    filled = {*contents, *(["claims"] if judged else [])}
    not_run = list(find_not_run(evidence, filled, checked))
    shown = {*filled, "run", "files", *(["not_run"] if not_run else [])}
    return environment.get_template(TEMPLATE).render(
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(text_bytes(script)).digest()).decode(),
        manifest=evidence.dataset.manifest,
        stale=evidence.stale,
        models=[model for model, _ in evaluated],
        variants=list(map(str, evidence.dataset.picture_variants)),
        heads=[(panel.head, contents.get(panel.id)) for panel in PANELS if panel.head],
        asides=[(panel.aside, contents[panel.id]) for panel in PANELS if panel.aside],
        sections=[(id, title) for id, title in _TITLES.items() if id in shown],
        not_run=not_run,
        rule=evidence.rule,
        checked=checked,
        judged=judged,
        questions=SECTIONS,
        verdicts=[(v, sum(c.verdict is v for c in judged)) for v in Verdict],
        panels=contents,
        templates={panel.id: panel.template for panel in PANELS},
        plots=_by_panel(plots, [model.name for model, _ in evaluated[:DETAILED]], figures),
        version=metadata.version("imagenet9-pipeline"),
        compared=COMPARED,
        detailed=DETAILED,
        provenance=make_provenance(evidence, figures),
        class_count="nine" if is_imagenet9 else evidence.taxonomy.num_labels,
        is_imagenet9=is_imagenet9,
        is_comparable=evidence.dataset.is_comparable,
        with_pictures=with_pictures,
        notes=[sentence(note) for note in notes_of(evidence.dataset.manifest)],
    )


@functools.cache
def _environment() -> jinja2.Environment:
    """Returns the environment of the templates, each of which is compiled once for a process."""
    environment = jinja2.Environment(
        # Panels lie with their analyses.
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("pipeline"), jinja2.PackageLoader("pipeline", "analyses")]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
    )
    environment.filters.update(
        percent=percent,
        name=name,
        short=lambda text: name(shorten(text, 28)),
        listed=listed,
        slope=rounded,
        number=lambda value: f"{value:,}",
    )
    environment.globals["times"] = TIMES
    return environment


def _visible(value: object) -> object:
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def name(text: str) -> Markup:
    """Marks where a name may break into lines: between its words only.

    >>> name("efficientnet_lite0"), name("<a/b>")
    (Markup('efficientnet_<wbr>lite0'), Markup('&lt;a/<wbr>b&gt;'))
    """
    return Markup("<wbr>").join(escape(part) for part in _BETWEEN_WORDS.split(escaped(text)))


def percent(share: float | None, digits: int = 1) -> str:
    """Formats a fraction as percent without the percent sign; None and NaN as a dash.

    >>> percent(0.80794), percent(-0.0001), percent(None)
    ('80.8', '0.0', '-')
    """
    return "-" if share is None or math.isnan(share) else rounded(100 * share, digits)


def rounded(value: float, digits: int = 2) -> str:
    """Formats a number with `digits` decimals, without a sign if it rounds to zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def _by_panel(
    plots: Sequence[Plot], detailed: Sequence[str], figures: Sequence[str]
) -> dict[str, list[tuple[Plot, Markup, list[Link]]]]:
    """Makes the SVG elements of the figures that are shown in the page, by `Plot.panel`.

    With each are the links to its files.
    """
    panels = defaultdict[str, list[tuple[Plot, Markup, list[Link]]]](list)
    for number, plot in enumerate(plots):
        if not plot.model or plot.model in detailed:
            svg = inline_svg(plot.drawn.svg, f"f{number}-", plot.alt)
            stem = plot.file.removesuffix("svg")
            links = [_link(p, p[-3:].upper()) for p in figures if p[:-3].endswith(f"/{stem}")]
            panels[plot.panel].append((plot, svg, links))
    return panels
