"""Numba kernels of the fused field on a CPU: both MLPs and the activations, after the hash grids.

A job is a block of points, processed in tiles whose hidden layers fit the L1 and L2 caches; the backward pass
recomputes the hidden layers. Within a tile, arrays are [channels, TILE], so that vectorization is over points. Sums
over points (the MLPs' gradients) are computed per block and added in the order of the blocks: no result depends on the
number of threads.

Arrays are copied by loops: for ``a[:n] = b[:n]``, numba compiles the text of an error, which takes seconds.

Rows of the MLPs, zero-padded for the matrix product (``_pack`` of fused_field):

    hidden [H, C16]   the density MLP's rows [0, split), then the color MLP's
    output [4, H]     row 0 reads [0, split), rows 1 to 3 the rest
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int32, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fourdiffusion.ops.hash_grid.numba_kernels import TILE

BLOCK = 4096  # points per job
ROWS, LANES = 4, 16  # of a block of the matrix product: its sums fill half of AVX2's registers
DOTS, DOT_LANES = 2, 8  # likewise of the product over points

_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True, "fastmath": {"contract"}}
_LOG2_E = float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = float32(0.693359375), float32(-2.12194440054690583e-4)  # sum: ln 2; the first has few bits


@intrinsic
def _multiply_block(
    typing_context: Any, a: Any, a_first: Any, a_row: Any, a_column: Any, b: Any, b_first: Any, b_row: Any,
    depth: Any, out: Any, out_first: Any, out_row: Any, add: Any, relu: Any,
) -> Any:  # fmt: skip
    """out[r, j] = add * out[r, j] + sum_k a[r, k] * b[k, j] for r < ROWS, j < LANES, k < depth; then relu, if set.

    The arrays are flat float32; entry [r, k] of a is at a_first + r * a_row + k * a_column, and likewise for b and out,
    whose columns are contiguous.
    """
    index = types.intp
    flag = types.boolean
    signature = types.void(a, index, index, index, b, index, index, index, out, index, index, flag, flag)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def data(number: int) -> Any:
            return context.make_array(signature.args[number])(context, builder, arguments[number]).data

        a_data, b_data, out_data = data(0), data(4), data(8)
        _, a_first, a_row, a_column, _, b_first, b_row, depth, _, out_first, out_row, add, relu = arguments
        vector = ir.VectorType(ir.FloatType(), LANES)
        zero, size = ir.Constant(vector, [0.0] * LANES), context.get_value_type(index)

        def at(array: Any, place: Any) -> Any:
            return builder.bitcast(builder.gep(array, [place]), vector.as_pointer())

        def load(pointer: Any) -> Any:
            value = builder.load(pointer)
            value.align = 4
            return value

        targets = [
            at(out_data, builder.add(out_first, builder.mul(out_row, ir.Constant(size, r)))) for r in range(ROWS)
        ]
        sums = [cgutils.alloca_once(builder, vector) for _ in range(ROWS)]
        with builder.if_else(add) as (then, otherwise):
            with then:
                for total, target in zip(sums, targets, strict=True):
                    builder.store(load(target), total)
            with otherwise:
                for total in sums:
                    builder.store(zero, total)
        with cgutils.for_range(builder, depth, intp=size) as loop:
            row = load(at(b_data, builder.add(b_first, builder.mul(loop.index, b_row))))
            column = builder.add(a_first, builder.mul(loop.index, a_column))
            for r, total in enumerate(sums):
                place = builder.add(column, builder.mul(a_row, ir.Constant(size, r)))
                scalar = builder.load(builder.gep(a_data, [place]))
                scalars = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(size, 0))
                mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
                scalars = builder.shuffle_vector(scalars, ir.Constant(vector, ir.Undefined), mask)
                product = builder.fmul(scalars, row, flags=("contract",))
                builder.store(builder.fadd(product, builder.load(total), flags=("contract",)), total)
        for total, target in zip(sums, targets, strict=True):
            value = builder.load(total)
            positive = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)  # keeps NaN
            builder.store(builder.select(relu, positive, value), target).align = 4
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _dot_block(
    typing_context: Any, a: Any, a_first: Any, b: Any, depth: Any, out: Any, out_first: Any, out_row: Any
) -> Any:
    """out[o, r] += sum_j a[r, j] * b[o, j] for r < DOTS, o < 4, j < depth, a multiple of DOT_LANES.

    The arrays are flat float32; a starts at a_first, and its rows and those of b are of length depth.
    """
    index = types.intp
    signature = types.void(a, index, b, index, out, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def data(number: int) -> Any:
            return context.make_array(signature.args[number])(context, builder, arguments[number]).data

        a_data, b_data, out_data = data(0), data(2), data(4)
        _, a_first, _, depth, _, out_first, out_row = arguments
        vector, size = ir.VectorType(ir.FloatType(), DOT_LANES), context.get_value_type(index)
        sums = [[cgutils.alloca_once(builder, vector) for _ in range(DOTS)] for _ in range(4)]
        for total in sum(sums, []):
            builder.store(ir.Constant(vector, [0.0] * DOT_LANES), total)

        def load(array: Any, place: Any) -> Any:
            value = builder.load(builder.bitcast(builder.gep(array, [place]), vector.as_pointer()))
            value.align = 4
            return value

        def row(number: int) -> Any:
            return builder.mul(depth, ir.Constant(size, number))

        steps = builder.udiv(depth, ir.Constant(size, DOT_LANES))
        with cgutils.for_range(builder, steps, intp=size) as loop:
            j = builder.mul(loop.index, ir.Constant(size, DOT_LANES))
            left = [load(a_data, builder.add(builder.add(a_first, row(r)), j)) for r in range(DOTS)]
            for o in range(4):
                right = load(b_data, builder.add(row(o), j))
                for r in range(DOTS):
                    product = builder.fmul(left[r], right, flags=("contract",))
                    total = builder.fadd(product, builder.load(sums[o][r]), flags=("contract",))
                    builder.store(total, sums[o][r])
        for o in range(4):
            for r in range(DOTS):
                total, lanes = builder.load(sums[o][r]), DOT_LANES
                while lanes > 1:
                    lanes //= 2
                    kind = ir.VectorType(ir.IntType(32), lanes)
                    low, high = (
                        builder.shuffle_vector(total, total, ir.Constant(kind, list(range(first, first + lanes))))
                        for first in (0, lanes)
                    )
                    total = builder.fadd(low, high)
                value = builder.extract_element(total, ir.Constant(size, 0))
                place = builder.add(
                    builder.add(out_first, builder.mul(out_row, ir.Constant(size, o))), ir.Constant(size, r)
                )
                target = builder.gep(out_data, [place])
                builder.store(builder.fadd(builder.load(target), value), target)
        return context.get_dummy_value()

    return signature, generate


@njit(**_OPTIONS)
def _exp(values: np.ndarray, power: np.ndarray) -> None:
    """Replace values [TILE] by their exponentials, relative error 2e-7. power is an int32 scratch array [TILE].

    exp(x) = 2^k exp(r) with |r| <= ln(2) / 2, where the Taylor series of degree 7 has an error of 6e-9.
    """
    factor = power.view(np.float32)
    for j in range(TILE):
        value = values[j]
        x = value if value > float32(-87) else float32(-87)  # also for NaN, which has no integer part
        x = x if x < float32(88) else float32(88)
        k = np.floor(x * _LOG2_E + float32(0.5))
        r = x - k * _LN2_HIGH - k * _LN2_LOW
        series = float32(1 / 5040)
        series = series * r + float32(1 / 720)
        series = series * r + float32(1 / 120)
        series = series * r + float32(1 / 24)
        series = series * r + float32(1 / 6)
        series = series * r + float32(0.5)
        series = (series * r + float32(1)) * r + float32(1)
        values[j] = series if value == value else value
        power[j] = (int32(k) + 127) << 23
    for j in range(TILE):
        values[j] *= factor[j]


@njit(**_OPTIONS)
def _sigmoid(values: np.ndarray, out: np.ndarray, power: np.ndarray) -> None:
    for j in range(TILE):
        out[j] = -values[j]
    _exp(out, power)
    for j in range(TILE):
        out[j] = float32(1) / (float32(1) + out[j])


@njit(**_OPTIONS)
def _softplus(values: np.ndarray, out: np.ndarray, power: np.ndarray) -> None:
    """log(1 + exp(x)) = max(x, 0) + log(1 + u), u = exp(-|x|); log(1 + u) = 2 artanh(u / (2 + u)), as a series."""
    for j in range(TILE):
        out[j] = -abs(values[j])
    _exp(out, power)
    for j in range(TILE):
        s = out[j] / (out[j] + float32(2))
        square = s * s
        series = float32(1 / 15)
        series = series * square + float32(1 / 13)
        series = series * square + float32(1 / 11)
        series = series * square + float32(1 / 9)
        series = series * square + float32(1 / 7)
        series = series * square + float32(1 / 5)
        series = series * square + float32(1 / 3)
        series = series * square + float32(1)
        out[j] = max(values[j], float32(0)) + float32(2) * s * series


@njit(**_OPTIONS)
def _hidden_layers(hidden: np.ndarray, width: int, tile: np.ndarray, channels: int, layers: np.ndarray) -> None:
    """relu(hidden @ tile): hidden [H, width], tile [C, TILE], layers [H, TILE], all flat."""
    for row in range(0, layers.shape[0] // TILE, ROWS):
        for j in range(0, TILE, LANES):
            at = row * TILE + j
            _multiply_block(hidden, row * width, width, 1, tile, j, TILE, channels, layers, at, TILE, False, True)


@njit(**_OPTIONS)
def units(first: int, last: int, x: np.ndarray, t: np.ndarray, radius: float, unit: np.ndarray) -> None:
    """Write the grid coordinates of points [first, last) of x [N, 3] in [-radius, radius] and t [N] to unit [4, N]."""
    for j in range(first, last):
        for axis in range(3):
            unit[axis, j] = (x[j, axis] + float32(radius)) / float32(2 * radius)
        unit[3, j] = t[j]


@njit(**_OPTIONS)
def _load_tile(features: np.ndarray, first: int, size: int, tile: np.ndarray) -> None:
    """Copy the features [C, N] of points [first, first + size) to tile [C, TILE], whose other columns stay."""
    for channel in range(features.shape[0]):
        for j in range(size):
            tile[channel, j] = features[channel, first + j]


@njit(**_OPTIONS)
def forward(
    first: int, last: int, x: np.ndarray, features: np.ndarray, blob_scale: float, blob_std: float,
    hidden: np.ndarray, output: np.ndarray, split: int, raw: np.ndarray, sigma: np.ndarray, rgb: np.ndarray,
) -> None:  # fmt: skip
    """Write the density of points [first, last) to sigma [N], and the color to rgb [N, 3] if the MLPs have color rows.

    x [N, 3], features [C, N], MLPs as in the module docstring. The density before softplus is written to raw [N] unless
    its length is 0.
    """
    channels, width = features.shape[0], hidden.shape[1]
    weights = hidden.reshape(-1)
    tile, layers = np.zeros((channels, TILE), np.float32), np.empty(hidden.shape[0] * TILE, np.float32)
    logits, activated, power = np.empty((4, TILE), np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.int32)
    for at in range(first, last, TILE):
        size = min(TILE, last - at)
        _load_tile(features, at, size, tile)
        _hidden_layers(weights, width, tile.reshape(-1), channels, layers)
        for j in range(0, TILE, LANES):
            _multiply_block(
                output.reshape(-1), 0, output.shape[1], 1, layers, j, TILE, output.shape[1], logits.reshape(-1), j,
                TILE, False, False,
            )  # fmt: skip
        for j in range(size):
            distance = np.sqrt(x[at + j, 0] ** 2 + x[at + j, 1] ** 2 + x[at + j, 2] ** 2)
            logits[0, j] += float32(blob_scale) * (float32(1) - distance / float32(blob_std))
        if raw.shape[0]:
            for j in range(size):
                raw[at + j] = logits[0, j]
        _softplus(logits[0], activated, power)
        for j in range(size):
            sigma[at + j] = activated[j]
        if hidden.shape[0] > split:
            for channel in range(3):
                _sigmoid(logits[channel + 1], activated, power)
                for j in range(size):
                    rgb[at + j, channel] = activated[j]


@njit(**_OPTIONS)
def _layer_gradient(slope: np.ndarray, output: np.ndarray, split: int, layers: np.ndarray) -> None:
    """Replace the hidden layers [H, TILE], flat, by their gradients before relu; slope [4, TILE]: output gradients."""
    gray, red, green, blue = slope[0], slope[1], slope[2], slope[3]
    for row in range(layers.shape[0] // TILE):
        values = layers[row * TILE : (row + 1) * TILE]
        w0, w1, w2, w3 = output[0, row], output[1, row], output[2, row], output[3, row]
        if row < split:
            for j in range(TILE):
                values[j] = w0 * gray[j] if values[j] > 0 else float32(0)
        else:
            for j in range(TILE):
                value = w1 * red[j] + w2 * green[j] + w3 * blue[j]
                values[j] = value if values[j] > 0 else float32(0)


@njit(**_OPTIONS)
def _load_slope(
    first: int, size: int, raw: np.ndarray, rgb: np.ndarray, sigma_gradient: np.ndarray, rgb_gradient: np.ndarray,
    slope: np.ndarray, scratch: np.ndarray, power: np.ndarray,
) -> None:  # fmt: skip
    """Write gradients of the MLPs' outputs, slope [4, TILE], of ``size`` points; the rest is 0."""
    slope[:] = 0
    for j in range(size):
        slope[0, j] = raw[first + j]
    _sigmoid(slope[0], scratch, power)  # the derivative of softplus
    slope[0, size:] = 0
    for j in range(size):
        slope[0, j] = sigma_gradient[first + j] * scratch[j]
    if rgb_gradient.shape[0]:
        for j in range(size):
            for channel in range(3):
                value = rgb[first + j, channel]
                slope[channel + 1, j] = rgb_gradient[first + j, channel] * (value * (float32(1) - value))


@njit(**_OPTIONS)
def backward(
    first: int, last: int, features: np.ndarray, raw: np.ndarray, rgb: np.ndarray, sigma_gradient: np.ndarray,
    rgb_gradient: np.ndarray, hidden: np.ndarray, output: np.ndarray, split: int, features_gradient: np.ndarray,
    hidden_gradient: np.ndarray, output_gradient: np.ndarray,
) -> None:  # fmt: skip
    """Write gradients of points [first, last) to features_gradient [C, N]; add those of the MLPs to this block's.

    rgb and rgb_gradient have length 0 if the MLPs have no color rows. The other arguments are those of ``forward``.
    """
    channels, (rows, width) = features.shape[0], hidden.shape
    weights, weights_gradient = hidden.reshape(-1), hidden_gradient.reshape(-1)
    tile, transposed = np.zeros((channels, TILE), np.float32), np.zeros((TILE, width), np.float32)
    flat, points = tile.reshape(-1), transposed.reshape(-1)
    layers = np.empty(rows * TILE, np.float32)
    slope, scratch, power = np.empty((4, TILE), np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.int32)
    out = np.empty((width, TILE), np.float32)
    for start in range(first, last, TILE):
        size = min(TILE, last - start)
        _load_tile(features, start, size, tile)
        for c in range(channels):
            for j in range(TILE):
                transposed[j, c] = tile[c, j]
        _load_slope(start, size, raw, rgb, sigma_gradient, rgb_gradient, slope, scratch, power)
        _hidden_layers(weights, width, flat, channels, layers)
        for row in range(0, rows, DOTS):
            _dot_block(layers, row * TILE, slope.reshape(-1), TILE, output_gradient.reshape(-1), row, rows)
        _layer_gradient(slope, output, split, layers)
        for row in range(0, rows, ROWS):
            for c in range(0, width, LANES):
                at = row * width + c
                _multiply_block(
                    layers, row * TILE, TILE, 1, points, c, width, TILE, weights_gradient, at, width, True, False
                )
        for c in range(0, channels, ROWS):
            for j in range(0, TILE, LANES):
                _multiply_block(
                    weights, c, 1, width, layers, j, TILE, rows, out.reshape(-1), c * TILE + j, TILE, False, False
                )
        for c in range(channels):
            for j in range(size):
                features_gradient[c, start + j] = out[c, j]
