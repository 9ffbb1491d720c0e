"""Run the small reproducers of faults that were found in version 0.1.0 on the present tree.

    python dev/cases.py FOLDER [NUMBER ...]

FOLDER holds one folder a case, with a ``check.py`` that calls the package as it was: former modules are given back
here, and where a setting or a file has moved the text of the call is replaced (PORTS). The assertions stay. Cases that
need a fitted scene take RUN from the environment, a run folder of the demo, and are skipped without it.
"""

import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDS_RUN = ("18", "24")
SECONDS = 900
PORTS = {  # {case: [(former text, present text)]}
    "16": [("sds.resolution_steps", "sds.resolution_milestones")],
    # the network's file is named by the setting matting_model; the name of the former setting is what was wrong
    "20": [
        ('Path(REPO, "fourdiffusion", "matting.py")', 'Path(REPO, "fourdiffusion", "media", "u2net.py")'),
        (
            're.search(r"give (\\w+) ?\\"?", text.split("rembg cannot use the model")[1]).group(1)',
            're.search(r"give its path as (\\w+)=", text).group(1)',
        ),
    ],
}


def former_modules() -> None:
    """Put what version 0.1.0 called fourdiffusion.media, .checkpoints and .scene.preview where the cases look."""
    from fourdiffusion import files, media
    from fourdiffusion.media.image import composite
    from fourdiffusion.media.read import load_video
    from fourdiffusion.scene import scene

    media.load_video, media.composite = load_video, composite  # type: ignore[attr-defined]
    for name, module in (("fourdiffusion.checkpoints", files), ("fourdiffusion.scene.preview", scene)):
        former = types.ModuleType(name)
        former.__dict__.update({key: value for key, value in vars(module).items() if not key.startswith("__")})
        sys.modules[name] = former


def forked(folder: Path) -> None:
    """Let the cases' ``common.cli`` fork this process, where a command needs no surroundings of its own: no imports."""
    sys.path.insert(0, str(folder))
    import common  # type: ignore[import-not-found]

    in_process_of_its_own = common.cli

    def cli(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
        if env or prefix:
            return in_process_of_its_own(*words, cwd=cwd, env=env, prefix=prefix)
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            child = os.fork()
            if child == 0:
                code = 99
                try:
                    os.chdir(cwd or ".")
                    os.dup2(said.fileno(), 1)
                    os.dup2(said.fileno(), 2)
                    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
                    from fourdiffusion.cli import main as command

                    code = command(list(words))
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            return code, said.read()[-4000:]

    common.cli = cli


def one(path: Path) -> None:
    """Run one check in this process: it exits with its verdict."""
    sys.argv[0], sys.path[0] = str(path), str(ROOT)
    former_modules()
    forked(path.parents[1])
    text = path.read_text(encoding="utf-8")
    for before, now in PORTS.get(path.parent.name[:2], []):
        if before not in text:
            raise SystemExit(f"{path}: no longer holds {before!r}")
        text = text.replace(before, now)
    exec(compile(text, str(path), "exec"), {"__name__": "__main__", "__file__": str(path)})


def main() -> int:
    folder, numbers = Path(sys.argv[1]), sys.argv[2:]
    wrong = 0
    for path in sorted(folder.glob("[0-9][0-9]-*/check.py")):
        name = path.parent.name
        if numbers and name[:2] not in numbers:
            continue
        if name[:2] in NEEDS_RUN and "RUN" not in os.environ:
            print(f"{name:36s} skipped: set RUN to a run folder of the demo", flush=True)
            continue
        began = time.monotonic()
        command = [sys.executable, __file__, "--one", str(path)]
        environment = os.environ | {"REPO": str(ROOT), "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
            code, said = done.returncode, (done.stdout + done.stderr).strip()
        except subprocess.TimeoutExpired:
            code, said = 124, "timeout"
        print(f"{name:36s} {code}  {time.monotonic() - began:.0f} s", flush=True)
        if code:
            wrong += 1
            print("    " + "\n    ".join(said.splitlines()[-8:]), flush=True)
    return wrong > 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(Path(sys.argv[2]))
    else:
        sys.exit(main())
