"""Write the reference pages of the docs from the code: each command's help, and the public API. Run by mkdocs."""

import mkdocs_gen_files

from fourdiffusion.cli.schema import load_settings_class, settings
from fourdiffusion.cli.verbs import VERBS

with mkdocs_gen_files.open("reference/commands.md", "w") as page:
    print("# Commands\n", file=page)
    for verb in VERBS:
        schema = load_settings_class(verb.settings)
        print(f"## {verb.words}\n\n{verb.summary[0].upper()}{verb.summary[1:]}.\n", file=page)
        print("\n".join(f"    {example}" for example in verb.examples), "\n", file=page)
        print("| setting | type | meaning |\n|---|---|---|", file=page)
        for setting in settings(schema):
            kind = setting.kind.replace("|", "\\|")
            print(f"| `{setting.key}` | {kind} | {setting.doc.replace('|', chr(92) + '|')} |", file=page)
        print(file=page)

with mkdocs_gen_files.open("reference/api.md", "w") as page:
    print("# Python\n", file=page)
    for name in (
        "fourdiffusion.diffusion.pipeline.FourDiffusionPipeline",
        "fourdiffusion.scene.scene",
        "fourdiffusion.scene.renderer",
        "fourdiffusion.cameras",
        "fourdiffusion.datasets.clips",
        "fourdiffusion.metrics.image",
        "fourdiffusion.metrics.video",
    ):
        print(f"::: {name}\n", file=page)
