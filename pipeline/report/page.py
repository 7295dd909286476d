"""Renders the page: puts the content of every panel into the templates."""

from __future__ import annotations

import base64
import collections
import functools
import hashlib
import math
import re
from collections.abc import Sequence

import jinja2
from markupsafe import Markup, escape

from pipeline.dataset.card import notes_of, sentence
from pipeline.display.evidence import Evidence
from pipeline.display.plot import COMPARED, Plot
from pipeline.display.text import TIMES
from pipeline.display.verdicts import Verdict
from pipeline.errors import escaped
from pipeline.report.claims import SECTIONS, check_claims
from pipeline.report.inline import inline_svg
from pipeline.report.provenance import make_provenance
from pipeline.report.sections import PANELS, find_not_run, shown_sections
from transforms.hashing import text_bytes

TEMPLATE = "report.html"
DETAILED = 4
"""Number of models whose own figures are in the page; figures of further models are only files
beside it."""
_BETWEEN_WORDS = re.compile(r"(?<=[-_./:=,+@])(?=\w)")


def render(
    evidence: Evidence, plots: Sequence[Plot], figures: Sequence[str], with_pictures: bool
) -> str:
    """Renders the page; the same evidence gives the same text.

    Args:
      evidence: what the page is made from.
      plots: the figures, from `make_plots`.
      figures: paths of the figures' files beside the page, which it links.
      with_pictures: whether pictures of the dataset are shown.
    """
    environment = _environment()
    script = environment.get_template("report/report.js").render()
    is_imagenet9 = evidence.dataset.is_imagenet9
    is_whole = evidence.dataset.manifest.config.segment.is_whole
    checked = () if is_whole else check_claims(evidence)
    judged = [one for one in checked if one.findings]
    inlined = _by_panel(plots, [model.name for model, _ in evidence.answered[:DETAILED]])
    contents = {
        panel.id: content for panel in PANELS if (content := panel.make(evidence, with_pictures))
    }
    filled = {*contents, *(["claims"] if judged else [])}
    not_run = find_not_run(evidence, filled, checked)
    return environment.get_template(TEMPLATE).render(
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(text_bytes(script)).digest()).decode(),
        manifest=evidence.dataset.manifest,
        stale=evidence.stale,
        models=[model for model, _ in evidence.answered],
        answered=evidence.answered,
        variants=evidence.dataset.picture_variants,
        heads=[(panel.head, contents.get(panel.id)) for panel in PANELS if panel.head],
        asides=[(panel.aside, contents[panel.id]) for panel in PANELS if panel.aside],
        sections=shown_sections(filled, not_run),
        not_run=not_run,
        rule=evidence.rule,
        checked=checked,
        judged=judged,
        questions=SECTIONS,
        verdicts=[(v, sum(c.verdict is v for c in judged)) for v in Verdict],
        panels=contents,
        templates={panel.id: panel.template for panel in PANELS},
        plots=inlined,
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
    environment.filters["percent"] = percent
    environment.filters["name"] = name
    environment.filters["slope"] = rounded
    environment.filters["number"] = lambda value: f"{value:,}"
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
    plots: Sequence[Plot], detailed: Sequence[str]
) -> dict[str, list[tuple[Plot, Markup]]]:
    """Makes the SVG elements of the figures that are shown in the page, by `Plot.panel`."""
    panels = collections.defaultdict[str, list[tuple[Plot, Markup]]](list)
    for number, plot in enumerate(plots):
        if not plot.model or plot.model in detailed:
            svg = inline_svg(plot.drawn.svg, f"f{number}-", plot.alt)
            panels[plot.panel].append((plot, svg))
    return panels
