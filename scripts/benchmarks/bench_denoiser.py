"""Time and peak memory of one guided denoising pass, ours beside a plain variant of the same network.

python scripts/benchmarks/bench_denoiser.py [WIDTH]

The plain variant does what the original code does: it runs the two guidance branches one after the other, and sends the
text and image tokens through the resampler and every cross-attention's projections again for each view of each frame at
each step. Ours encodes them once (``MultiviewUNet.encode_context``), which is not counted: a sampling run does it once.
Both use torch's scaled dot-product attention. Each variant runs in a process of its own; the outputs are compared.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from fourdiffusion.diffusion.attention import CrossAttention, attend
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet

FRAMES, VIEWS, SIDE, REPEATS = 8, 5, 32, 2


def plain_cross_attention(self: CrossAttention, x: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, F, V h w, C], tokens [B F V, L, D] of text and of the image."""
    text, image = context
    query = self.to_q(x).view(len(text), -1, x.shape[-1])
    out = attend(query, self.to_k(text), self.to_v(text), self.head_dim)
    out = out + attend(query, self.to_k_image(image), self.to_v_image(image), self.head_dim)
    return self.to_out(out).view_as(x)


@torch.no_grad()
def main(variant: str, width: int, result: Path) -> None:
    """Runs one variant and writes its output."""
    torch.manual_seed(0)
    unet = MultiviewUNet(channels=[width, 2 * width, 4 * width, 4 * width]).eval()
    motion = MotionModules(unet.block_channels())
    z = torch.randn(2, FRAMES, VIEWS, 4, SIDE, SIDE)
    text, image = torch.randn(2, 77, 1024), torch.randn(2, FRAMES, 257, 1280)
    camera, timestep = torch.randn(2, VIEWS, 16), torch.full((2,), 500)
    context = unet.encode_context(text, image)
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        if variant == "ours":
            noise = unet(z, timestep, context, camera, motion)
        else:
            CrossAttention.forward = plain_cross_attention  # type: ignore[method-assign, assignment]
            branches = []
            for b in range(2):
                words = text[b].expand(FRAMES * VIEWS, -1, -1)
                seen = image[b, :, None].expand(-1, VIEWS, -1, -1).flatten(0, 1)
                tokens = (words, unet.resampler(seen))
                everywhere = [tokens] * len(unet.block_channels())
                one = slice(b, b + 1)
                branches.append(unet(z[one], timestep[one], everywhere, camera[one], motion))
            noise = torch.cat(branches)
        seconds.append(time.perf_counter() - began)
    torch.save(noise, result)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{min(seconds):.2f} {peak:.2f}")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
        sys.exit()
    width = sys.argv[1] if len(sys.argv) > 1 else "128"
    with tempfile.TemporaryDirectory() as folder:
        figures = {}
        for variant in ("plain", "ours"):
            command = [sys.executable, __file__, variant, width, f"{folder}/{variant}"]
            words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            figures[variant] = [float(word) for word in words]
        a, b = (torch.load(f"{folder}/{variant}", weights_only=True) for variant in ("plain", "ours"))
    print(f"width {width}, {FRAMES} x {VIEWS} images of {SIDE} x {SIDE} latents, {torch.get_num_threads()} threads")
    for variant, (best, peak) in figures.items():
        print(f"{variant:6} {best:8.2f} s (best of {REPEATS})  {peak:6.2f} GiB at most")
    print(f"ratio {figures['plain'][0] / figures['ours'][0]:.2f}; outputs differ by {(a - b).norm() / b.norm():.1e}")
