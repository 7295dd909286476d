"""Vector instructions that handle the eight neighbours of a pixel at once.

A pixel has a byte with a bit for each open arc, that is, each arc with capacity left. Three short
loads fetch the neighbours' values from a plane, and one comparison and the byte tell which of them
open arcs lead to: a bit mask, whereas a loop over the neighbours would branch eight times. The code
uses LLVM's generic vectors, which LLVM turns into the instructions of the machine.

A vector load must not follow closely on a store of one of its elements: a processor can forward a
store only to a load that it covers, so such a load waits until the store is in the cache, which
takes longer than all else here. That is why open arcs are kept as a byte, which is loaded as it is
stored, and why the callers look at the neighbours of many pixels before they change any.

Neighbours are numbered in raster order, so the opposite of direction k is 7 - k:

    0 1 2
    3 . 4
    5 6 7

The functions take flat arrays of a padded grid with `stride` nodes in a row, and do not check
bounds: `node` must not lie in the padding, and planes must be `SLACK` longer than the grid.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir
from llvmlite.ir import IRBuilder, Value
from numba.core import cgutils, types
from numba.core.base import BaseContext as Target
from numba.core.types import Array, Type
from numba.core.typing import Context, Signature
from numba.extending import intrinsic

Values = Sequence[Value]
Emitted = tuple[Signature, Callable[[Target, IRBuilder, Signature, Values], Value]]
"""The types of an intrinsic, and the function that emits its code."""

SLACK = 8
"""Number of extra elements at the end of a plane. They are needed because the three neighbours of
a row are read as four elements."""

_BITS = ir.IntType(8)
_SHORT = ir.IntType(16)
_WORD = ir.IntType(32)


def _address(
    context: Target, builder: IRBuilder, array_type: Array, array: Value, index: Value
) -> Value:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _load(builder: IRBuilder, address: Value, element: ir.IntType, count: int) -> Value:
    vector = builder.load(builder.bitcast(address, ir.VectorType(element, count).as_pointer()))
    vector.align = element.width // 8
    return vector


def _constant(element: ir.IntType, values: list[int]) -> Value:
    return ir.Constant(ir.VectorType(element, len(values)), values)


def _shuffle(builder: IRBuilder, first: Value, second: Value, lanes: list[int]) -> Value:
    return builder.shuffle_vector(first, second, _constant(ir.IntType(32), lanes))


def _broadcast(builder: IRBuilder, value: Value, count: int) -> Value:
    vector = ir.VectorType(value.type, count)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    return _shuffle(builder, single, ir.Constant(vector, ir.Undefined), [0] * count)


def _around(
    context: Target, builder: IRBuilder, plane_type: Array, plane: Value, node: Value, stride: Value
) -> Value:
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


def _equal(builder: IRBuilder, values: Value, value: Value) -> Value:
    return builder.icmp_unsigned("==", values, _broadcast(builder, value, 8))


def _mask(builder: IRBuilder, lanes: Value) -> Value:
    """Packs eight truth values into the bits of an integer."""
    return builder.zext(builder.bitcast(lanes, _BITS), ir.IntType(64))


def _byte(
    context: Target, builder: IRBuilder, array_type: Array, array: Value, index: Value
) -> Value:
    return builder.load(_address(context, builder, array_type, array, index))


@intrinsic
def open_arcs(_: Context, residual: Type, node: Type) -> Emitted:
    """Returns a bit mask of the arcs of a node that have capacity left.

    Arguments: residual int32[8 * nodes], node int64. Returns int64.
    """

    def emit(context: Target, builder: IRBuilder, signature: Signature, values: Values) -> Value:
        residual, node = values
        first = builder.mul(node, node.type(8))
        address = _address(context, builder, signature.args[0], residual, first)
        capacities = _load(builder, address, _WORD, 8)
        return _mask(builder, builder.icmp_unsigned("!=", capacities, _constant(_WORD, [0] * 8)))

    return types.int64(residual, types.int64), emit


@intrinsic
def open_arcs_to(
    _: Context, is_open: Type, level: Type, node: Type, stride: Type, value: Type
) -> Emitted:
    """Returns a bit mask of the open arcs that lead to a neighbour at the level `value`.

    Arguments: is_open uint8[nodes], level uint16[nodes], node int64, stride int64, value uint16.
    Returns int64.
    """

    def emit(context: Target, builder: IRBuilder, signature: Signature, values: Values) -> Value:
        is_open, level, node, stride, value = values
        arcs = _byte(context, builder, signature.args[0], is_open, node)
        levels = _around(context, builder, signature.args[1], level, node, stride)
        mask = _mask(builder, _equal(builder, levels, value))
        return builder.and_(builder.zext(arcs, mask.type), mask)

    return types.int64(is_open, level, types.int64, types.int64, types.uint16), emit


@intrinsic
def open_arcs_from(
    _: Context, is_open: Type, level: Type, node: Type, stride: Type, value: Type
) -> Emitted:
    """Returns a bit mask of the neighbours at the level `value` that have an open arc to the node.

    Arguments: is_open uint8[nodes], level uint16[nodes], node int64, stride int64, value uint16.
    Returns int64.
    """

    def emit(context: Target, builder: IRBuilder, signature: Signature, values: Values) -> Value:
        is_open, level, node, stride, value = values
        arcs = _around(context, builder, signature.args[0], is_open, node, stride)
        arcs = builder.and_(arcs, _constant(_BITS, [1 << 7 - k for k in range(8)]))
        arcs = builder.icmp_unsigned("!=", arcs, _constant(_BITS, [0] * 8))
        levels = _around(context, builder, signature.args[1], level, node, stride)
        return _mask(builder, builder.and_(arcs, _equal(builder, levels, value)))

    return types.int64(is_open, level, types.int64, types.int64, types.uint16), emit


@intrinsic
def lowest_open_arcs(_: Context, is_open: Type, level: Type, node: Type, stride: Type) -> Emitted:
    """Returns the lowest level that open arcs lead to, and which arcs lead there.

    Arguments: is_open uint8[nodes], level uint16[nodes], node int64, stride int64.
    Returns int64: 256 times the level, which is 65535 without open arcs, plus the arcs' bit mask.
    """

    def emit(context: Target, builder: IRBuilder, signature: Signature, values: Values) -> Value:
        is_open, level, node, stride = values
        arcs = _byte(context, builder, signature.args[0], is_open, node)
        arcs = builder.bitcast(arcs, ir.VectorType(ir.IntType(1), 8))
        levels = _around(context, builder, signature.args[1], level, node, stride)
        levels = builder.select(arcs, levels, _constant(_SHORT, [65535] * 8))
        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_SHORT, [levels.type]), "llvm.vector.reduce.umin.v8i16"
        )
        lowest = builder.call(reduce, [levels])
        mask = _mask(builder, _equal(builder, levels, lowest))
        return builder.or_(builder.shl(builder.zext(lowest, mask.type), mask.type(8)), mask)

    return types.int64(is_open, level, types.int64, types.int64), emit


@intrinsic
def neighbours_pointing_here(_: Context, direction: Type, node: Type, stride: Type) -> Emitted:
    """Returns a bit mask of the neighbours whose direction leads to this node.

    Arguments: direction uint8[nodes], node int64, stride int64. Returns int64.
    """

    def emit(context: Target, builder: IRBuilder, signature: Signature, values: Values) -> Value:
        direction, node, stride = values
        values = _around(context, builder, signature.args[0], direction, node, stride)
        opposite = _constant(_BITS, [7, 6, 5, 4, 3, 2, 1, 0])
        return _mask(builder, builder.icmp_unsigned("==", values, opposite))

    return types.int64(direction, types.int64, types.int64), emit


@intrinsic
def lowest_bit(_: Context, mask: Type) -> Emitted:
    """Returns the index of the lowest set bit of an int64; any number for 0: int64."""

    def emit(context: Target, builder: IRBuilder, signature: Signature, values: Values) -> Value:
        return builder.cttz(values[0], ir.IntType(1)(0))

    return types.int64(types.int64), emit
