"""Fingerprints: digests of everything that files were made from, including the stage's version."""

from __future__ import annotations

import hashlib
import json

from transforms.hashing import text_bytes

SEGMENT_VERSION = 1
"""Raised by hand when Segment would write other layers or records for the same input."""
COMPOSE_VERSION = 1
"""Raised by hand when Plan or Compose would write other files for the same layers."""
EVALUATE_VERSION = 2
"""Raised by hand when Evaluate would write other predictions for the same pixels."""
ATTACK_VERSION = 2
"""Raised by hand when Attack would write other predictions for the same pixels."""
SALIENCY_VERSION = 2
"""Raised by hand when Saliency would write other numbers or maps for the same pixels."""
IMPORT_VERSION = 1
"""Raised by hand when Import would write other files for the same archive."""


def fingerprint(*parts: object) -> str:
    """Returns the first 32 hexadecimal digits of the SHA-256 of the parts, written as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text_bytes(text)).hexdigest()[:32]
