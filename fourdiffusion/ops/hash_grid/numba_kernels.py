"""The hash grid's inner loops on a CPU, compiled by numba (compiled once, then read from numba's cache).

Why it is built as it is:

* Both passes run parallel over levels: no two threads ever add to the same entry, so nothing is atomic and the result
  does not depend on the number of threads, bit for bit. A level's table stays in its core's cache.
* A level is worked off in tiles of points: cells, then corners (both vectorised by the compiler), then the table.
* The two features of an entry travel as one 8-byte value (a float64 in numba's eyes, whose bits are two float32): one
  load, one multiply-add, one store. `_add_scaled_pair` is the only arithmetic ever done on such a value.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, float32, njit, prange, set_num_threads, types, uint32
from numba.extending import intrinsic

TILE = 128  # points a tile: its scratch arrays stay in the first-level cache

# "contract" lets a multiplication and an addition become one instruction; nothing else may be reordered.
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "fastmath": {"contract"}}


@intrinsic
def _add_scaled_pair(typing_context: Any, total: Any, scale: Any, pair: Any) -> Any:
    """total + scale * pair, where total and pair hold two float32 each."""
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
    """Points [first, first + count) of x [D, N], clamped to [0, 1], to points [D, TILE]; the rest is 0."""
    for axis in range(x.shape[0]):
        row, target = x[axis, first : first + count], points[axis]
        target[count:] = 0
        for j in range(count):
            value = row[j] if row[j] > 0 else float32(0)  # NaN too becomes 0: no index may leave its level
            target[j] = value if value < 1 else float32(1)


@njit(**_OPTIONS)
def _cells(points: np.ndarray, scale: float, multiplier: np.ndarray, cells: np.ndarray, frac: np.ndarray) -> None:
    """Where points [D, TILE] lie: per axis both neighbours' coordinates, each times the axis' multiplier, and the place
    between them. cells [8 * TILE] holds x low, x high, y low, ..., t high; frac [4 * TILE] x, y, z, t.
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
    """Entries of the 8 spatial corners (x fastest) at the lower (0) or upper (1) time, [8 * TILE] corner by corner."""
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
    """The same for a dense level, modulo size: inside [0, 1] no sum of strides reaches 2 * size."""
    for corner in range(8):
        x, y, z = (corner & 1) * TILE, (2 + (corner >> 1 & 1)) * TILE, (4 + (corner >> 2)) * TILE
        for j in range(TILE):
            dense = uint32(cells[j + x] + cells[j + y] + cells[j + z] + cells[j + (6 + time) * TILE])
            index[j + corner * TILE] = min(dense, uint32(dense - size))


@njit(**_OPTIONS)
def _weights(frac: np.ndarray, time: int, weight: np.ndarray) -> None:
    """Shares of the same corners, [8 * TILE]."""
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


@njit(**_OPTIONS)
def _gather(table: np.ndarray, index: np.ndarray, weight: np.ndarray, total: np.ndarray) -> None:
    for j in range(TILE):
        pair = total[j]
        for corner in range(8):
            k = j + corner * TILE
            pair = _add_scaled_pair(pair, weight[k], table[np.int64(index[k])])
        total[j] = pair


@njit(**_OPTIONS)
def _scatter(table: np.ndarray, index: np.ndarray, weight: np.ndarray, gradient: np.ndarray) -> None:
    for j in range(TILE):
        pair = gradient[j]
        for corner in range(8):
            k = j + corner * TILE
            i = np.int64(index[k])
            table[i] = _add_scaled_pair(table[i], weight[k], pair)


@njit(**_OPTIONS)
def _interleaved(k: int, count: int) -> int:
    """The k-th of 0, 2, 4, ..., 1, 3, 5, ...: a thread gets coarse and fine levels alike when the list is cut."""
    half = (count + 1) // 2
    return 2 * k if k < half else 2 * (k - half) + 1


@njit(parallel=True, **_OPTIONS)
def _forward(
    x: np.ndarray, table: np.ndarray, scale: np.ndarray, multiplier: np.ndarray, offset: np.ndarray,
    hashed: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    dims, num_points = x.shape
    for k in prange(scale.shape[0]):
        level = _interleaved(k, scale.shape[0])
        points = np.empty((dims, TILE), np.float32)
        cells, frac = np.zeros(8 * TILE, np.uint32), np.zeros(4 * TILE, np.float32)
        index, weight = np.empty(8 * TILE, np.uint32), np.empty(8 * TILE, np.float32)
        pairs = np.empty(TILE, np.float64)
        features = pairs.view(np.float32)
        size = uint32(offset[level + 1] - offset[level])
        level_table = table[offset[level] : offset[level + 1]]
        for first in range(0, num_points, TILE):
            count = min(TILE, num_points - first)
            _load_points(x, first, count, points)
            _cells(points, scale[level], multiplier[level], cells, frac)
            pairs[:] = 0
            for time in range(dims - 2):
                _corners(cells, frac, time, hashed[level], size, index, weight)
                _gather(level_table, index, weight, pairs)
            for j in range(count):
                out[2 * level, first + j] += features[2 * j]
                out[2 * level + 1, first + j] += features[2 * j + 1]


@njit(parallel=True, **_OPTIONS)
def _backward(
    x: np.ndarray, gradient: np.ndarray, scale: np.ndarray, multiplier: np.ndarray, offset: np.ndarray,
    hashed: np.ndarray, table: np.ndarray,
) -> None:  # fmt: skip
    dims, num_points = x.shape
    for k in prange(scale.shape[0]):
        level = _interleaved(k, scale.shape[0])
        points = np.empty((dims, TILE), np.float32)
        cells, frac = np.zeros(8 * TILE, np.uint32), np.zeros(4 * TILE, np.float32)
        index, weight = np.empty(8 * TILE, np.uint32), np.empty(8 * TILE, np.float32)
        pairs = np.empty(TILE, np.float64)
        features = pairs.view(np.float32)
        size = uint32(offset[level + 1] - offset[level])
        level_table = table[offset[level] : offset[level + 1]]
        for first in range(0, num_points, TILE):
            count = min(TILE, num_points - first)
            _load_points(x, first, count, points)
            _cells(points, scale[level], multiplier[level], cells, frac)
            pairs[:] = 0
            for j in range(count):
                features[2 * j] = gradient[2 * level, first + j]
                features[2 * j + 1] = gradient[2 * level + 1, first + j]
            for time in range(dims - 2):
                _corners(cells, frac, time, hashed[level], size, index, weight)
                _scatter(level_table, index, weight, pairs)


def forward(
    x: np.ndarray, params: np.ndarray, scale: np.ndarray, multiplier: np.ndarray, offset: np.ndarray,
    hashed: np.ndarray, out: np.ndarray, num_threads: int,
) -> None:  # fmt: skip
    """Adds the features of x [3 or 4, N] to out [2 L, N].

    Args:
        x: float32, contiguous, in [0, 1].
        params: flat float32, the levels' entries one after another, two features each.
        scale: float64 [L]. multiplier: uint32 [L, D], strides of a dense level, hash primes of a hashed one.
        offset: int64 [L + 1], in entries. hashed: bool [L].
        num_threads: at most; the result does not depend on it.
    """
    set_num_threads(min(num_threads, config.NUMBA_NUM_THREADS))
    _forward(x, params.view(np.float64), scale, multiplier, offset, hashed, out)


def backward(
    x: np.ndarray, gradient: np.ndarray, scale: np.ndarray, multiplier: np.ndarray, offset: np.ndarray,
    hashed: np.ndarray, params_gradient: np.ndarray, num_threads: int,
) -> None:  # fmt: skip
    """Adds to params_gradient (flat float32) what gradient [2 L, N] of the features of x gives. Arguments as above."""
    set_num_threads(min(num_threads, config.NUMBA_NUM_THREADS))
    _backward(x, gradient, scale, multiplier, offset, hashed, params_gradient.view(np.float64))
