"""Keyed hashes: the source of the project's random choices.

A choice is a function of (seed, purpose, key), so it does not depend on order, bundling, worker or
retry. Generators with a state are used only where a method brings its own, as GrabCut and PyTorch
do, and are seeded before each use.
"""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def text_bytes(text: str) -> bytes:
    """Encodes text without loss, as hashes need it.

    Different texts give different bytes, even with lone surrogates (undecodable file names). Such
    bytes are not UTF-8, so text for people goes through `pipeline.errors.shown_bytes` instead.
    """
    return text.encode("utf-8", "surrogatepass")


def text_digest(text: str) -> str:
    """Returns the SHA-256 of text, as 64 hexadecimal digits."""
    return hashlib.sha256(text_bytes(text)).hexdigest()


def fingerprint(*parts: object) -> str:
    """Returns the first 32 hexadecimal digits of the SHA-256 of the parts, written as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return text_digest(text)[:32]


def keyed_hash(seed: int, purpose: str, key: str) -> int:
    """Hashes a key for one purpose to an integer, uniformly distributed over [0, 2**64).

    Hashes for different purposes are independent. The key may hold lone surrogates (undecodable
    file names).

    >>> keyed_hash(0, "shard", "ILSVRC2012_val_00000355")
    4624683703699469604
    """
    message = text_bytes(f"{seed}\0{purpose}\0{key}")
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")


def keyed_hashes(seed: int, purpose: str, keys: Iterable[str]) -> UInt64Array:
    """Hashes each key with `keyed_hash`: (len(keys),) uint64."""
    return np.fromiter((keyed_hash(seed, purpose, key) for key in keys), np.uint64)


def are_below(hashes: UInt64Array, share: float) -> NDArray[np.bool_]:
    """Tells which hashes lie in the lowest `share` (0 to 1) of their range: (n,) bool.

    All that lie in one share lie in every larger one; none lie in 0, and all in 1.
    """
    # A double holds the hash's upper 53 bits exactly.
    return np.asarray((hashes >> np.uint64(11)) < share * 2.0**53, np.bool_)


def substream(hashes: UInt64Array, index: int) -> UInt64Array:
    """Derives the draw `index`, >= 0, of each hash's substream; draws are independent.

    Takes (n,) uint64, from `keyed_hashes`, and returns the same: the splitmix64 generator (Steele,
    Lea and Flood 2014) seeded with each hash, at step `index + 1`.
    """
    return np.asarray(substreams(hashes, range(index, index + 1))[0])


def substreams(hashes: UInt64Array, indices: range) -> UInt64Array:
    """Derives several draws at once, like `substream`. Returns (len(indices), n) uint64."""
    steps = (np.asarray(indices, np.uint64) + np.uint64(1)) * _GOLDEN_GAMMA
    mixed: UInt64Array = hashes + steps[:, np.newaxis]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
