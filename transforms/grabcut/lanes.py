"""Vector instructions that handle the eight neighbours of a pixel at once.

A pixel's residual capacities to its eight neighbours are contiguous (8 x int32), so one load and
one comparison tell which arcs are open, that is, have capacity left. Three short loads fetch the
neighbours' values from a plane. The result is a bit mask, whereas a loop over the neighbours would
branch eight times. The code uses LLVM's generic vectors, which LLVM turns into the instructions of
the machine.

Neighbours are numbered in raster order, so the opposite of direction k is 7 - k:

    0 1 2
    3 . 4
    5 6 7

The functions take flat arrays of a padded grid with `stride` nodes in a row, and do not check
bounds: `node` must not lie in the padding, and planes must be `SLACK` longer than the grid.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

SLACK = 8
"""Number of extra elements at the end of a plane. They are needed because the three neighbours of
a row are read as four elements."""

_BITS = ir.IntType(8)
_SHORT = ir.IntType(16)
_WORD = ir.IntType(32)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _load(builder: Any, address: Any, element: ir.IntType, count: int) -> Any:
    vector = builder.load(builder.bitcast(address, ir.VectorType(element, count).as_pointer()))
    vector.align = element.width // 8
    return vector


def _constant(element: ir.IntType, values: list[int]) -> Any:
    return ir.Constant(ir.VectorType(element, len(values)), values)


def _shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(first, second, _constant(ir.IntType(32), lanes))


def _broadcast(builder: Any, value: Any, count: int) -> Any:
    vector = ir.VectorType(value.type, count)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    return _shuffle(builder, single, ir.Constant(vector, ir.Undefined), [0] * count)


def _around(context: Any, builder: Any, plane_type: Any, plane: Any, node: Any, stride: Any) -> Any:
    """Loads the eight neighbours' values from a plane, in the order of the directions."""
    element = context.get_data_type(plane_type.dtype)
    one = node.type(1)
    rows = [
        _load(builder, _address(context, builder, plane_type, plane, start), element, 4)
        for start in (
            builder.sub(builder.sub(node, stride), one),
            builder.sub(node, one),
            builder.sub(builder.add(node, stride), one),
        )
    ]
    upper = _shuffle(builder, rows[0], rows[1], [0, 1, 2, 4, 6, 0, 0, 0])
    lower = _shuffle(builder, rows[2], rows[2], [0, 1, 2, 0, 0, 0, 0, 0])
    return _shuffle(builder, upper, lower, [0, 1, 2, 3, 4, 8, 9, 10])


def _open_arcs(context: Any, builder: Any, array_type: Any, residual: Any, node: Any) -> Any:
    first = builder.mul(node, node.type(8))
    arcs = _load(builder, _address(context, builder, array_type, residual, first), _WORD, 8)
    return builder.icmp_unsigned("!=", arcs, _constant(_WORD, [0] * 8))


def _mask(builder: Any, lanes: Any) -> Any:
    """Packs eight truth values into the bits of an integer."""
    return builder.zext(builder.bitcast(lanes, _BITS), ir.IntType(64))


@intrinsic
def open_arcs_to(typing: Any, residual: Any, level: Any, node: Any, stride: Any, value: Any) -> Any:
    """Returns a bit mask of the open arcs that lead to a neighbour at the level `value`.

    Arguments: residual int32[8 * nodes], level uint16[nodes], node int64, stride int64,
    value uint16. Returns uint64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        residual, level, node, stride, value = arguments
        arcs = _open_arcs(context, builder, signature.args[0], residual, node)
        levels = _around(context, builder, signature.args[1], level, node, stride)
        equal = builder.icmp_unsigned("==", levels, _broadcast(builder, value, 8))
        return _mask(builder, builder.and_(arcs, equal))

    return types.uint64(residual, level, types.int64, types.int64, types.uint16), generate


@intrinsic
def lowest_open_level(typing: Any, residual: Any, level: Any, node: Any, stride: Any) -> Any:
    """Returns the lowest level of the neighbours that open arcs lead to, 65535 without open arcs.

    Arguments: residual int32[8 * nodes], level uint16[nodes], node int64, stride int64.
    Returns int64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        residual, level, node, stride = arguments
        arcs = _open_arcs(context, builder, signature.args[0], residual, node)
        levels = _around(context, builder, signature.args[1], level, node, stride)
        open_levels = builder.select(arcs, levels, _constant(_SHORT, [65535] * 8))
        reduce = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_SHORT, [open_levels.type]),
            "llvm.vector.reduce.umin.v8i16",
        )
        return builder.zext(builder.call(reduce, [open_levels]), ir.IntType(64))

    return types.int64(residual, level, types.int64, types.int64), generate


@intrinsic
def neighbours_equal(typing: Any, plane: Any, node: Any, stride: Any, value: Any) -> Any:
    """Returns a bit mask of the neighbours whose value in the plane equals `value`.

    Arguments: plane uint16[nodes], node int64, stride int64, value uint16. Returns uint64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        plane, node, stride, value = arguments
        values = _around(context, builder, signature.args[0], plane, node, stride)
        return _mask(builder, builder.icmp_unsigned("==", values, _broadcast(builder, value, 8)))

    return types.uint64(plane, types.int64, types.int64, types.uint16), generate


@intrinsic
def neighbours_pointing_here(typing: Any, direction: Any, node: Any, stride: Any) -> Any:
    """Returns a bit mask of the neighbours whose direction leads to this node.

    Arguments: direction uint8[nodes], node int64, stride int64. Returns uint64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        direction, node, stride = arguments
        values = _around(context, builder, signature.args[0], direction, node, stride)
        opposite = _constant(_BITS, [7, 6, 5, 4, 3, 2, 1, 0])
        return _mask(builder, builder.icmp_unsigned("==", values, opposite))

    return types.uint64(direction, types.int64, types.int64), generate


@intrinsic
def lowest_bit(typing: Any, mask: Any) -> Any:
    """Returns the index of the lowest set bit of a uint64 that is not 0: int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate
