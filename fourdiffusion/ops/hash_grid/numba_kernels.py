"""Numba kernels of the hash grid on a CPU (compiled once, then read from numba's cache).

Design:

* A job is a level, in the forward pass for a range of points: no two threads add to the same entry, so no atomics are
  needed and the result does not depend on the number of threads, bit for bit. A level's table stays in its core's
  cache.
* A level is processed in tiles of points: cells, then corners (both vectorized by the compiler), then the table.
* The two features of an entry are handled as one 8-byte value (a float64 for numba, whose bits are two float32): one
  load, one multiply-add, one store. Only the two intrinsics here do arithmetic on such values.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, njit, types, uint32
from numba.extending import intrinsic

GROUP = 4  # points whose entries are gathered together; TILE is a multiple
TILE = 128  # points per tile: its scratch arrays fit the L1 cache

# "contract" lets a multiplication and an addition become one instruction; nothing else may be reordered.
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True, "fastmath": {"contract"}}


@intrinsic
def _add_scaled_pair(typing_context: Any, total: Any, scale: Any, pair: Any) -> Any:
    """Return total + scale * pair, where total and pair are two float32 each."""
    signature = types.float64(types.float64, types.float32, types.float64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        two_floats = ir.VectorType(ir.FloatType(), 2)
        total, scale, pair = arguments
        total, pair = builder.bitcast(total, two_floats), builder.bitcast(pair, two_floats)
        scales = ir.Constant(two_floats, ir.Undefined)
        for lane in range(2):
            scales = builder.insert_element(scales, scale, ir.Constant(ir.IntType(32), lane))
        product = builder.fmul(scales, pair, flags=("contract",))
        return builder.bitcast(builder.fadd(product, total, flags=("contract",)), ir.DoubleType())

    return signature, generate


@njit(**_OPTIONS)
def _load_points(x: np.ndarray, first: int, count: int, points: np.ndarray) -> None:
    """Copy points [first, first + count) of x [D, N], clamped to [0, 1], to points [D, TILE]; the rest is 0."""
    for axis in range(x.shape[0]):
        row, target = x[axis, first : first + count], points[axis]
        target[count:] = 0
        for j in range(count):
            value = row[j] if row[j] > 0 else float32(0)  # NaN also becomes 0: no index may leave its level
            target[j] = value if value < 1 else float32(1)


@njit(**_OPTIONS)
def _cells(points: np.ndarray, scale: float, multiplier: np.ndarray, cells: np.ndarray, frac: np.ndarray) -> None:
    """Compute the cells of points [D, TILE]: per axis both neighbors' coordinates, times the axis' multiplier, and the
    position between them. cells [8 * TILE] holds x low, x high, y low, ..., t high; frac [4 * TILE] x, y, z, t.
    """
    for axis in range(points.shape[0]):
        x, step = points[axis], multiplier[axis]
        low, high = cells[2 * axis * TILE : (2 * axis + 1) * TILE], cells[(2 * axis + 1) * TILE : (2 * axis + 2) * TILE]
        place = frac[axis * TILE : (axis + 1) * TILE]
        for j in range(TILE):
            position = float32(np.float64(x[j]) * scale + 0.5)  # rounded once, as a fused multiply-add does
            cell = np.floor(position)
            first = uint32(uint32(np.int32(cell)) * step)
            low[j], high[j] = first, uint32(first + step)
            place[j] = position - cell


@njit(**_OPTIONS)
def _hashed_corners(cells: np.ndarray, time: int, size: int, index: np.ndarray) -> None:
    """Compute entries of the 8 spatial corners (x fastest) at the lower (0) or upper (1) time, [8 * TILE] by corner."""
    mask = uint32(size - uint32(1))
    for j in range(TILE):
        x0, x1, t = cells[j], cells[j + TILE], cells[j + (6 + time) * TILE]
        y0, y1 = cells[j + 2 * TILE] ^ t, cells[j + 3 * TILE] ^ t
        z0, z1 = cells[j + 4 * TILE], cells[j + 5 * TILE]
        index[j] = (x0 ^ y0 ^ z0) & mask
        index[j + TILE] = (x1 ^ y0 ^ z0) & mask
        index[j + 2 * TILE] = (x0 ^ y1 ^ z0) & mask
        index[j + 3 * TILE] = (x1 ^ y1 ^ z0) & mask
        index[j + 4 * TILE] = (x0 ^ y0 ^ z1) & mask
        index[j + 5 * TILE] = (x1 ^ y0 ^ z1) & mask
        index[j + 6 * TILE] = (x0 ^ y1 ^ z1) & mask
        index[j + 7 * TILE] = (x1 ^ y1 ^ z1) & mask


@njit(**_OPTIONS)
def _dense_corners(cells: np.ndarray, time: int, size: int, index: np.ndarray) -> None:
    """As ``_hashed_corners`` for a dense level, modulo size: inside [0, 1] no sum of strides reaches 2 * size."""
    for j in range(TILE):
        x0, x1, t = cells[j], cells[j + TILE], cells[j + (6 + time) * TILE]
        y0, y1 = uint32(cells[j + 2 * TILE] + t), uint32(cells[j + 3 * TILE] + t)
        z0, z1 = cells[j + 4 * TILE], cells[j + 5 * TILE]
        index[j] = _wrap(uint32(uint32(x0 + y0) + z0), size)
        index[j + TILE] = _wrap(uint32(uint32(x1 + y0) + z0), size)
        index[j + 2 * TILE] = _wrap(uint32(uint32(x0 + y1) + z0), size)
        index[j + 3 * TILE] = _wrap(uint32(uint32(x1 + y1) + z0), size)
        index[j + 4 * TILE] = _wrap(uint32(uint32(x0 + y0) + z1), size)
        index[j + 5 * TILE] = _wrap(uint32(uint32(x1 + y0) + z1), size)
        index[j + 6 * TILE] = _wrap(uint32(uint32(x0 + y1) + z1), size)
        index[j + 7 * TILE] = _wrap(uint32(uint32(x1 + y1) + z1), size)


@njit(**_OPTIONS)
def _wrap(index: int, size: int) -> int:
    return index - size if index >= size else index


@njit(**_OPTIONS)
def _weights(frac: np.ndarray, time: int, weight: np.ndarray) -> None:
    """Compute the interpolation weights of the same corners, [8 * TILE]."""
    for j in range(TILE):
        x1, y1, z1 = frac[j], frac[j + TILE], frac[j + 2 * TILE]
        x0, y0, z0 = float32(1) - x1, float32(1) - y1, float32(1) - z1
        t = frac[j + 3 * TILE] if time else float32(1) - frac[j + 3 * TILE]
        y0z0, y1z0, y0z1, y1z1 = t * z0 * y0, t * z0 * y1, t * z1 * y0, t * z1 * y1
        weight[j] = y0z0 * x0
        weight[j + TILE] = y0z0 * x1
        weight[j + 2 * TILE] = y1z0 * x0
        weight[j + 3 * TILE] = y1z0 * x1
        weight[j + 4 * TILE] = y0z1 * x0
        weight[j + 5 * TILE] = y0z1 * x1
        weight[j + 6 * TILE] = y1z1 * x0
        weight[j + 7 * TILE] = y1z1 * x1


@njit(**_OPTIONS)
def _corners(
    cells: np.ndarray, frac: np.ndarray, time: int, hashed: bool, size: int, index: np.ndarray, weight: np.ndarray
) -> None:
    if hashed:
        _hashed_corners(cells, time, size, index)
    else:
        _dense_corners(cells, time, size, index)
    _weights(frac, time, weight)


@intrinsic
def _gather_group(typing_context: Any, table: Any, index: Any, weight: Any, total: Any, first: Any) -> Any:
    """Add the 8 corners' weighted entries to totals [first, first + GROUP): one vector holds a group's pairs."""
    signature = types.void(table, index, weight, total, types.uintp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table, index, weight, total = (
            context.make_array(signature.args[number])(context, builder, arguments[number]).data for number in range(4)
        )
        number, lane = ir.IntType(64), ir.IntType(32)
        pair, pairs = ir.VectorType(ir.FloatType(), 2), ir.VectorType(ir.FloatType(), 2 * GROUP)
        entries = builder.bitcast(table, pair.as_pointer())

        def lanes(places: list[int]) -> Any:
            return ir.Constant(ir.VectorType(lane, len(places)), places)

        def load(pointer: Any, kind: Any, align: int) -> Any:
            value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
            value.align = align
            return value

        target = builder.gep(total, [arguments[4]])
        result = load(target, pairs, 8)
        for corner in range(8):
            start = builder.add(arguments[4], ir.Constant(number, corner * TILE))
            parts = []
            for point in range(GROUP):
                place = builder.load(builder.gep(index, [builder.add(start, ir.Constant(number, point))]))
                parts.append(load(builder.gep(entries, [builder.zext(place, number)]), pair, 8))
            while len(parts) > 1:
                places = lanes(list(range(2 * parts[0].type.count)))
                parts = [builder.shuffle_vector(a, b, places) for a, b in zip(parts[::2], parts[1::2], strict=True)]
            shares = load(builder.gep(weight, [start]), ir.VectorType(ir.FloatType(), GROUP), 4)
            shares = builder.shuffle_vector(shares, shares, lanes([k // 2 for k in range(2 * GROUP)]))
            product = builder.fmul(shares, parts[0], flags=("contract",))
            result = builder.fadd(product, result, flags=("contract",))
        builder.store(result, builder.bitcast(target, pairs.as_pointer())).align = 8
        return context.get_dummy_value()

    return signature, generate


@njit(**_OPTIONS)
def _gather(table: np.ndarray, index: np.ndarray, weight: np.ndarray, total: np.ndarray) -> None:
    for j in range(0, TILE, GROUP):
        _gather_group(table, index, weight, total, np.uintp(j))


@njit(**_OPTIONS)
def _scatter(table: np.ndarray, index: np.ndarray, weight: np.ndarray, gradient: np.ndarray) -> None:
    for j in range(TILE):
        pair = gradient[j]
        for corner in range(8):
            k = j + corner * TILE
            i = np.int64(index[k])
            table[i] = _add_scaled_pair(table[i], weight[k], pair)


@njit(**_OPTIONS)
def encode(
    x: np.ndarray, table: np.ndarray, levels: tuple[np.ndarray, ...], level: int, first: int, last: int, add: bool,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Write, or add, a level's features of points [first, last) of x [3 or 4, N] to rows 2 * level on of out [2 L, N].

    Args:
        x: float32, contiguous, in [0, 1].
        table: entry after entry, two float32 features in each float64.
        levels: scale float64 [L]; multiplier uint32 [L, D], strides of a dense level, hash primes of a hashed one;
            offset int64 [L + 1], in entries; hashed bool [L].
    """
    scale, multiplier, offset, hashed = levels
    dims = x.shape[0]
    points = np.empty((dims, TILE), np.float32)
    cells, frac = np.zeros(8 * TILE, np.uint32), np.zeros(4 * TILE, np.float32)
    index, weight = np.empty(8 * TILE, np.uint32), np.empty(8 * TILE, np.float32)
    pairs = np.empty(TILE, np.float64)
    features = pairs.view(np.float32)
    size = uint32(offset[level + 1] - offset[level])
    level_table = table[offset[level] : offset[level + 1]]
    for start in range(first, last, TILE):
        count = min(TILE, last - start)
        even, odd = out[2 * level, start : start + count], out[2 * level + 1, start : start + count]
        _load_points(x, start, count, points)
        _cells(points, scale[level], multiplier[level], cells, frac)
        pairs[:] = 0
        if add:
            for j in range(count):
                features[2 * j], features[2 * j + 1] = even[j], odd[j]
        for time in range(dims - 2):
            _corners(cells, frac, time, hashed[level], size, index, weight)
            _gather(level_table, index, weight, pairs)
        for j in range(count):
            even[j], odd[j] = features[2 * j], features[2 * j + 1]


@njit(**_OPTIONS)
def scatter(x: np.ndarray, gradient: np.ndarray, levels: tuple[np.ndarray, ...], level: int, table: np.ndarray) -> None:
    """Add the gradient of a level's entries to table, given gradient [2 L, N] of the features of x [3 or 4, N]."""
    scale, multiplier, offset, hashed = levels
    dims, num_points = x.shape
    points = np.empty((dims, TILE), np.float32)
    cells, frac = np.zeros(8 * TILE, np.uint32), np.zeros(4 * TILE, np.float32)
    index, weight = np.empty(8 * TILE, np.uint32), np.empty(8 * TILE, np.float32)
    pairs = np.empty(TILE, np.float64)
    features = pairs.view(np.float32)
    size = uint32(offset[level + 1] - offset[level])
    level_table = table[offset[level] : offset[level + 1]]
    for start in range(0, num_points, TILE):
        count = min(TILE, num_points - start)
        _load_points(x, start, count, points)
        _cells(points, scale[level], multiplier[level], cells, frac)
        pairs[:] = 0
        even, odd = gradient[2 * level, start : start + count], gradient[2 * level + 1, start : start + count]
        for j in range(count):
            features[2 * j], features[2 * j + 1] = even[j], odd[j]
        for time in range(dims - 2):
            _corners(cells, frac, time, hashed[level], size, index, weight)
            _scatter(level_table, index, weight, pairs)
