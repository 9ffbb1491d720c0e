"""Numba kernel of ray marching on a CPU (compiled once, then read from numba's cache)."""

import numpy as np
from numba import float32, njit

TILE = 64  # intervals whose cells are computed together, vectorized by the compiler


@njit(cache=True, error_model="numpy", nogil=True)
def march(
    first_ray: int, origins: np.ndarray, directions: np.ndarray, near: np.ndarray, far: np.ndarray,
    jitter: np.ndarray, first: np.ndarray, count: np.ndarray, step: float, radius: float, occupied: np.ndarray,
    ray_index: np.ndarray, t_start: np.ndarray, t_end: np.ndarray,
) -> int:  # fmt: skip
    """Write the intervals in occupied cells of the rays [R] to the arrays [sum of count]; return their number.

    Interval k of a ray begins at near + (first + k - jitter) * step. Each operation is rounded to float32, in the order
    of the torch backend. ``first_ray`` is added to the ray's number. A grid of one cell is not looked at.
    """
    size, look = occupied.shape[0], occupied.shape[0] > 1
    cells = occupied.reshape(-1)
    highest, half, inverse = float32(size - 1), float32(size / 2), float32(size / 2 / radius)
    width, radius32 = float32(step), float32(radius)
    index = np.zeros(TILE, np.int32)
    number = 0
    for ray in range(len(near)):
        low, high, shift = near[ray], far[ray], jitter[ray]
        for begin in range(0, int(count[ray]), TILE):
            num = min(TILE, int(count[ray]) - begin)
            origin = first[ray] + float32(begin)
            if look:
                for k in range(num):
                    start = low + (origin + float32(k) - shift) * width
                    middle = (max(start, low) + min(start + width, high)) / float32(2)
                    place = 0
                    for axis in range(3):
                        base = (origins[ray, axis] / radius32 + float32(1)) * half
                        at = base + middle * (directions[ray, axis] * inverse)
                        place = place * size + int(min(max(at, float32(0)), highest))
                    index[k] = place
            for k in range(num):
                start = low + (origin + float32(k) - shift) * width
                begins, ends = max(start, low), min(start + width, high)
                if ends > begins and (not look or cells[index[k]]):
                    ray_index[number], t_start[number], t_end[number] = first_ray + ray, begins, ends
                    number += 1
    return number
