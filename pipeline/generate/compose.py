"""Compose: writes all variants of an output shard from layers and backgrounds, and its index."""

from __future__ import annotations

import contextlib
import operator
import tempfile
from collections.abc import Sequence

import pyarrow as pa

from pipeline.dataset.config import ComposeConfig
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ImageRow,
    Row,
    count_sources,
    index_file,
    read_image_rows,
)
from pipeline.dataset.sinks import (
    digests_of,
    open_sinks,
    sample_files,
    sample_schema,
)
from pipeline.generate.origin import JobStep
from pipeline.generate.pictures import (
    Composer,
    Fills,
    LayerSource,
    SelectedImage,
    fields_of,
    find_variants,
)
from pipeline.generate.plan import Plan, PlannedImage, load_plan
from pipeline.generate.scenes import DrawnScenes, Scene
from pipeline.generate.shard_elements import OutputShard
from pipeline.runtime.progress import Tally, count_shard, timed
from pipeline.storage.state_files import warn_damaged
from pipeline.storage.store import FileDigest
from transforms.filters import Reason
from transforms.hashing import fingerprint
from transforms.variants import VariantName, filled_bases


def index_schema(config: ComposeConfig) -> pa.Schema:
    """Returns the schema of the index: a row for every image (or object), accepted or not."""
    return pa.schema(
        [
            *(
                RECORD_SCHEMA.field(name)
                for name in (
                    *("key", "path", "wnid", "label", "status", "detail", "width", "height"),
                    *("source_md5", "native_box", "box", "mask_over_box", "fg_fraction"),
                    *("group", "object"),
                )
            ),
            pa.field("selected", pa.bool_(), nullable=False),
            *(pa.field(f"{variant}_bg_key", pa.string()) for variant in config.indexed),
            pa.field("segmenter", pa.string()),
        ]
    )


class ComposeShard(JobStep):
    """Planned OutputShard -> the same shard, composed. One call does all the work on a shard."""

    def setup(self) -> None:
        super().setup()
        config = self.config.compose
        self._composer = Composer(config, config.composed, find_variants(config.variants))

    @timed("compose")
    def process(self, output: OutputShard) -> list[OutputShard]:
        store, config = self.outputs.store, self.config.compose
        cutter = self.job.origin.cutter(self.config.segment)
        plan = load_plan(store, output.plan, config, output.plan_digest)
        images = sorted(
            (row for source in output.sources for row in read_image_rows(store, source.path)),
            key=operator.attrgetter("rank"),
        )
        scenes = (
            DrawnScenes(output.scenes, self.outputs, self.config.segment, config)
            if output.scenes
            else None
        )
        rows, selected = self._select(images, plan, scenes)
        checksum = self._fingerprint(output, rows, selected)
        index = index_file(output.totals.split, output.shard, output.totals.counts.output)
        record = self.outputs.find(index, checksum)
        if (
            self.job.origin.recipe
            and record is not None
            and record.path == index
            and any(source.path.startswith(self.layers.folder) for source in output.sources)
        ):
            # The checksum does not tell apart layers that other libraries cut from one source.
            record = None
        if record is not None and selected:
            wanted = sample_files(
                config.composed,
                config.formats,
                output.totals.split,
                output.shard,
                output.totals.counts.output,
            )
            if not {file.path for file in record.files}.issuperset(wanted):
                warn_damaged(store.path(record.path), "files are missing from its list")
                record = None
        tally = Tally(self.job.progress, "compose", f"{output.totals.split}-{output.shard:05d}")
        if record is None:
            is_new = True
            source = LayerSource(store, cutter, scenes, filled_bases(config.composed))
            files = self.write_variants(output, source, list(selected.values()), tally)
            tally.counts["images_composed"] += len(selected)
            tally.note()
            table = pa.Table.from_pylist(rows, index_schema(config))
            record = self.outputs.write(index, table, checksum, files)
        else:
            is_new = tally.load()
            record = self.outputs.with_record(record, index, len(rows))
        count_shard("output_shards", record.files, is_new=is_new)
        tally.end()
        # Images that were not selected count as finished, too.
        tally.note_done(count_sources(images))
        return [output.with_result(record, rows, count_sources(images))]

    def _select(
        self, images: list[ImageRow], plan: Plan, scenes: DrawnScenes | None
    ) -> tuple[list[Row], dict[str, SelectedImage]]:
        """Returns (the rows of the shard's index, the selected images by key)."""
        segment = self.config.segment
        label = None if segment.keeps_image_whole else segment.describe_segmenter().label
        accepted = [row.key for row in images if row.status == ACCEPTED]
        planned = dict(zip(accepted, plan.find(accepted), strict=True))
        keys = [key for key in accepted if planned[key].selected]
        drawn: dict[VariantName, Sequence[PlannedImage | Scene]]
        drawn = {**plan.backgrounds(keys), **(scenes.draw(keys) if scenes else {})}
        backgrounds = {
            key: {variant: column[number] for variant, column in drawn.items()}
            for number, key in enumerate(keys)
        }
        rows, selected = [], {}
        for row in images:
            columns: Row = {**vars(row), "selected": False, "segmenter": label}
            if row.status == ACCEPTED and row.key in backgrounds:
                own = backgrounds[row.key]
                selected[row.key] = SelectedImage(row, planned[row.key], own)
                columns["selected"] = True
                columns |= {f"{variant}_bg_key": each.key for variant, each in own.items()}
            elif row.status == ACCEPTED and planned[row.key].no_background:
                columns["status"] = str(Reason.NO_BACKGROUND)
                columns["detail"] = "no other image can give it a background"
            rows.append(columns)
        return rows, selected

    def _fingerprint(
        self, output: OutputShard, rows: list[Row], selected: dict[str, SelectedImage]
    ) -> str:
        """Identifies everything that the files of a shard depend on.

        Of the backgrounds that were drawn, these are the pixels and classes.
        """
        backgrounds = {
            key: [[str(name), fields_of(each), each.layer_digest] for name, each in drawn.items()]
            for key, drawn in ((key, image.backgrounds) for key, image in selected.items())
        }
        drawn = [
            [row["key"], row["status"], row["selected"], *backgrounds.get(row["key"], ())]
            for row in rows
        ]
        return fingerprint(
            self.config.compose.fingerprint(),
            [output.shard, output.totals.counts.output],
            [source.fingerprint for source in output.sources],
            drawn,
            self.job.taxonomy.description,
        )

    def write_variants(
        self,
        output: OutputShard,
        source: LayerSource,
        images: Sequence[SelectedImage],
        tally: Tally,
    ) -> tuple[FileDigest, ...]:
        """Writes all variants to the staging folder; returns digests by final paths."""
        with self.outputs.store.together() as store, contextlib.ExitStack() as stack:
            sinks = open_sinks(
                stack,
                store,
                self.outputs,
                variants=self.config.compose.composed,
                formats=self.config.compose.formats,
                schema=sample_schema(self.job.taxonomy.names),
                split=output.totals.split,
                shard=output.shard,
                num_shards=output.totals.counts.output,
            )
            fills = Fills(stack.enter_context(tempfile.TemporaryFile()))
            composed = self._composer.compose(source, images, fills)
            for image, pictures in stack.enter_context(contextlib.closing(composed)):
                for variant, picture in pictures.items():
                    sample = self._composer.sample(image, variant, picture)
                    for sink in sinks[variant]:
                        sink.add(sample)
                tally.advance(image.row.is_first)
            tally.counts["fill_fallbacks"] += fills.tiled
        return digests_of(sinks)
