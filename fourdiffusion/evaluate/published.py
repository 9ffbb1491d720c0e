"""Numbers that papers and threads report, to stand beside measured ones, marked as published.

None of these sources states all of its protocol: a published row and a measured one differ in method and in protocol.
"""

PAPER = "4Diffusion, arXiv 2405.20674v2; backbones, resolution and averaging are not stated there"
THREAD = "Consistent4D#11: the authors' own renders under the released scripts"

# {protocol: (source, {method: {metric, or family of metrics where the source does not say which: value}})}
PUBLISHED: dict[str, tuple[str, dict[str, dict[str, float]]]] = {
    "paper_table1": (
        f"{PAPER}, table 1",
        {
            "4D-fy (ImageDream prior)": {
                "clip_i": 0.8658,
                "clip_c": 0.9487,
                "fvd": 1042.3,
                "lpips": 0.2254,
                "psnr": 14.24,
            },
            "Consistent4D": {"clip_i": 0.9216, "clip_c": 0.9723, "fvd": 706.07, "lpips": 0.1593, "psnr": 16.70},
            "DreamGaussian4D": {"clip_i": 0.8898, "clip_c": 0.9710, "fvd": 760.18, "lpips": 0.1793, "psnr": 15.97},
            "without 4D-SDS": {"clip_i": 0.8195, "clip_c": 0.9503, "fvd": 1546.4, "lpips": 0.2356, "psnr": 13.92},
            "without anchor loss": {"clip_i": 0.8823, "clip_c": 0.9720, "fvd": 853.57, "lpips": 0.1589, "psnr": 17.20},
            "4Diffusion": {"clip_i": 0.9310, "clip_c": 0.9798, "fvd": 417.63, "lpips": 0.1199, "psnr": 19.07},
        },
    ),
    "paper_table2": (
        f"{PAPER}, table 2, mean of 5 sampling seeds",
        {
            "ImageDream": {"clip_i": 0.9165, "clip_c": 0.9320, "fvd": 465.94, "lpips": 0.1536, "psnr": 16.57},
            "4DM, all animated": {"clip_i": 0.8872, "clip_c": 0.9478, "fvd": 583.79, "lpips": 0.1763, "psnr": 15.28},
            "4DM, curated 926": {"clip_i": 0.9260, "clip_c": 0.9601, "fvd": 427.34, "lpips": 0.1346, "psnr": 17.88},
        },
    ),
    "consistent4d": (
        THREAD,
        {"Consistent4D": {"clip_i [clip-vit-base-patch32]": 0.9085, "lpips_vgg": 0.1316, "psnr": 17.25}},
    ),
}


def published_value(values: dict[str, float], metric: str, columns: list[str]) -> float | None:
    """Return what a source reports for a column, None for nothing.

    A value of a family (the source does not name its network) stands in that family's only column.
    """
    if metric in values:
        return values[metric]
    alone = [family(column) for column in columns].count(family(metric)) == 1
    return values.get(family(metric)) if alone else None


def family(metric: str) -> str:
    """Return the family of a metric's name: "fvd" of "fvd [set]", "lpips" of "lpips_vgg"."""
    name = metric.split(" ")[0]
    return "lpips" if name.startswith("lpips") else name.removesuffix("_spherical")
