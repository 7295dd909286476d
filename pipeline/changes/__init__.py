"""Versions of a dataset: publishing one, and changes.md, which says what is different in it, and
why.

    states of two versions -> images, accuracies, causes -> text -> publish
"""

from pipeline.changes.publish import Publishing as Publishing
from pipeline.changes.publish import check_publishing as check_publishing
from pipeline.changes.publish import describe_published as describe_published
from pipeline.changes.publish import publish as publish
