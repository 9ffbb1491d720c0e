"""Mutation testing of the modules in which a wrong sign, order or bound costs quality and raises no error.

    pip install cosmic-ray coverage
    python dev/mutation.py                      # every group; hours on one core
    python dev/mutation.py cameras fit_step     # some groups
    python dev/mutation.py --sample 40          # 40 mutants of each group, drawn by a fixed seed
    python dev/mutation.py --again fit_step     # only the mutants that survived the last run
    python dev/mutation.py --table              # the table in dev/mutation.md, from the results so far

Cosmic-ray makes the mutants (OPERATORS below), this script runs them: a process that has imported the libraries, and
nothing of the project, forks once per mutant; the fork compiles the mutated source in place of the file and runs the
tests that reach the mutated statement, the fastest first, until one fails. A measured run of the unchanged source says
which those are. Results lie in runs/mutation/GROUP.json. Annotations and text are not mutated.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "runs" / "mutation"

# {group: (files of the package, test files)}
GROUPS: dict[str, tuple[list[str], list[str]]] = {
    "cameras": (["cameras.py"], ["test_cameras.py", "datasets/test_sampling.py"]),
    "distillation": (
        ["diffusion/distillation.py"],
        ["diffusion/test_distillation.py", "diffusion/test_sds_formulas.py", "diffusion/test_reference.py"],
    ),
    "fit_step": (["fit/step.py"], ["fit/test_plan.py", "fit/test_step.py"]),
    "train_step": (["train/step.py"], ["train/test_step_by_hand.py", "train/test_train_step.py"]),
    "objectives": (
        ["diffusion/objectives.py"],
        ["diffusion/test_objectives_by_hand.py", "diffusion/test_objectives.py"],
    ),
    "motion": (["diffusion/motion.py"], ["diffusion/test_motion.py", "diffusion/test_reference.py"]),
    "renderer": (["scene/renderer.py"], ["scene/test_renderer_bounds.py", "scene/test_renderer.py"]),
    "long_video": (["diffusion/long_video.py"], ["diffusion/test_long_video.py", "diffusion/test_generation.py"]),
    "pipeline": (
        ["diffusion/pipeline.py", "diffusion/generation.py"],
        ["diffusion/test_pipeline.py", "diffusion/test_generation.py"],
    ),
    "field": (["scene/field.py"], ["scene/test_field.py", "ops/test_fused_field.py"]),
    "hash_grid": (
        ["ops/hash_grid/layout.py", "ops/hash_grid/torch_backend.py", "ops/hash_grid/__init__.py"],
        ["ops/test_hash_grid.py"],
    ),
    "metrics": (
        ["metrics/image.py", "metrics/frechet.py", "metrics/statistics.py", "metrics/video.py"],
        [
            "metrics/test_image.py",
            "metrics/test_frechet.py",
            "metrics/test_statistics.py",
            "metrics/test_video.py",
            "metrics/test_bounds.py",
        ],
    ),
}
# One or two replacements of each operator; cosmic-ray knows eleven of each, which fail together or survive together.
OPERATORS = [
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Mod_Mul", "Pow_Mul", "BitOr_BitAnd", "BitAnd_BitOr")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_GtE", "LtE_Gt", "Gt_LtE", "GtE_Lt")),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Not", "Invert")),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer"),
    *("RemoveDecorator", "ZeroIterationForLoop", "ExceptionReplacer"),
]


@dataclass
class Baseline:
    """What the unchanged source does: the seconds of each test, and the tests that reach each line."""

    seconds: dict[str, float] = field(default_factory=dict)
    reached: dict[str, dict[int, list[str]]] = field(default_factory=dict)  # {file: {line: contexts}}
    fixtures: dict[str, list[str]] = field(default_factory=dict)  # {test: the fixtures that it uses}
    libraries: list[str] = field(default_factory=list)

    def tests(self, path: str, lines: range) -> list[str]:
        """Return the tests that reach one of the lines, the fastest first; all of them for lines that imports run."""
        contexts = {context for line in lines for context in self.reached.get(path, {}).get(line, [])}
        if "" in contexts:
            return sorted(self.seconds, key=self.seconds.__getitem__)
        fixtures = {context.removeprefix("fixture ") for context in contexts if context.startswith("fixture ")}
        found = {test for test in self.seconds if test in contexts or fixtures & set(self.fixtures[test])}
        return sorted(found, key=self.seconds.__getitem__)


class Recorder:
    """A pytest plugin that writes a Baseline."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.baseline, self.current = coverage, Baseline(), ""

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> None:
        self.current = item.nodeid
        self.baseline.fixtures[item.nodeid] = list(item.fixturenames)
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.baseline.seconds.setdefault(report.nodeid, 0.0)
        self.baseline.seconds[report.nodeid] += report.duration

    def wrapped_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            yield
            return
        self.coverage.switch_context(f"fixture {fixturedef.argname}")
        yield
        self.coverage.switch_context(self.current)


def measure(files: list[str], tests: list[str], log: Path) -> Baseline:
    """Run the tests on the unchanged source in a fork and return what they reach."""
    answer = log.with_suffix(".baseline.json")

    def child() -> int:
        import coverage
        import pytest

        cover = coverage.Coverage(data_file=None, include=[str(ROOT / "fourdiffusion" / name) for name in files])
        recorder = Recorder(cover)
        hook = pytest.hookimpl(wrapper=True)(Recorder.wrapped_fixture_setup)
        Recorder.pytest_fixture_setup = hook  # type: ignore[attr-defined]
        cover.start()
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[recorder]))
        cover.stop()
        data, baseline = cover.get_data(), recorder.baseline
        baseline.reached = {path: data.contexts_by_lineno(path) for path in data.measured_files()}
        project = ("fourdiffusion", "test", "conftest", "_pytest", "pytest", "__main__", "coverage")
        baseline.libraries = [name for name in sys.modules if not name.startswith(project)]
        answer.write_text(json.dumps(vars(baseline)))
        return code

    code = in_a_fork(child, 3600, log)
    if code != 0:
        raise SystemExit(f"the unchanged source fails its own tests, see {log}")
    found = json.loads(answer.read_text())
    found["reached"] = {path: {int(n): who for n, who in lines.items()} for path, lines in found["reached"].items()}
    return Baseline(**found)


def in_a_fork(work: Any, limit_s: float, log: Path) -> int | None:
    """Return the exit code of ``work`` in a forked process; None where it takes longer than ``limit_s`` seconds."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.setsid()
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        try:
            os._exit(work())
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(99)
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def statements(source: str) -> dict[int, range]:
    """Return {line: the lines of the innermost statement over it}; of a compound statement, the lines of its head."""
    found: dict[int, range] = {}
    for node in ast.walk(ast.parse(source)):  # breadth first, so that inner statements come later
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
            last = max(first, body[0].lineno - 1) if body else node.end_lineno or first
            found |= {line: range(first, last + 1) for line in range(first, last + 1)}
    return found


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the places of all annotations: ((line, column), (line, column))."""
    nodes: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            nodes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes.append(node.returns)
    return [((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0)) for n in nodes if n is not None]


def mutants(source: str) -> Iterator[tuple[str, int, int, str]]:
    """Make every mutant of a source: (operator, its occurrence, line, mutated source)."""
    from cosmic_ray.ast import Visitor, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    class Positions(Visitor):
        def __init__(self, operator: Any) -> None:
            self.operator, self.found = operator, list[tuple[tuple[int, int], tuple[int, int]]]()

        def visit(self, node: Any) -> Any:
            self.found += self.operator.mutation_positions(node)
            return node

    spared = annotations(source)
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        positions = Positions(operator)
        positions.walk(get_ast(source))
        for occurrence, (start, _) in enumerate(positions.found):
            if any(low <= tuple(start) < high for low, high in spared):
                continue
            mutated = mutate_code(source, operator, occurrence)
            try:
                differs = mutated is not None and ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))
            except SyntaxError:  # ** of a call is an operator, too, to cosmic-ray
                continue
            if differs:
                yield name, occurrence, start[0], mutated


def changed_lines(before: str, after: str) -> str:
    """Return the changed lines of a mutant in one line of text."""
    pairs = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=False) if a != b]
    return f"{pairs[0][0].strip()}  ->  {pairs[0][1].strip()}" if pairs else "a line is gone"


def outcome(path: Path, mutated: str, tests: list[str], limit_s: float, log: Path) -> str:
    """Run the tests on one mutant: killed, timeout, or survived."""

    def child() -> int:
        import pytest

        loader: Any = importlib.machinery.SourceFileLoader
        get_code = loader.get_code

        def get_mutated_code(self: Any, fullname: str) -> Any:
            own = Path(self.path) == path
            return compile(mutated, str(path), "exec") if own else get_code(self, fullname)

        loader.get_code = get_mutated_code
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]))

    code = in_a_fork(child, limit_s, log)
    return "timeout" if code is None else "survived" if code == 0 else "killed"


def run(group: str, again: bool, sample: int | None) -> None:
    """Try the mutants of a group and write the results after each one; mutants that were tried before are skipped."""
    files, test_files = GROUPS[group]
    RESULTS.mkdir(parents=True, exist_ok=True)
    log, answer = RESULTS / f"{group}.log", RESULTS / f"{group}.json"
    baseline = measure(files, [f"tests/{name}" for name in test_files], log)
    for name in baseline.libraries:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    before = {key(each): each for each in json.loads(answer.read_text())} if answer.exists() else {}
    wanted = [
        (name, mutant) for name in files for mutant in mutants((ROOT / "fourdiffusion" / name).read_text("utf-8"))
    ]
    results: dict[tuple[str, str, int], dict[str, Any]] = {}
    number = len(wanted)
    if sample is not None and sample < number:
        random.Random(0).shuffle(wanted)  # a larger sample holds the smaller one
        wanted = sorted(wanted[:sample])
    for name, (operator, occurrence, line, mutated) in wanted:
        path = ROOT / "fourdiffusion" / name
        source = path.read_text(encoding="utf-8")
        known = before.pop((name, operator, occurrence), None)
        change = changed_lines(source, mutated)
        if known is not None and known["change"] == change and not (again and known["outcome"] == "survived"):
            results[name, operator, occurrence] = known
            continue
        tests = baseline.tests(str(path), statements(source).get(line, range(line, line + 1)))
        limit_s = 60 + 20 * sum(baseline.seconds[test] for test in tests)
        found = outcome(path, mutated, tests, limit_s, log) if tests else "survived"
        entry = {"file": name, "operator": operator, "occurrence": occurrence, "line": line, "change": change}
        results[name, operator, occurrence] = entry | {"outcome": found, "tests": len(tests), "of": number}
        if found == "survived":
            print(f"{name}:{line} {operator} ({len(tests)} tests): {change}", flush=True)
        answer.write_text(json.dumps([*results.values(), *before.values()], indent=1) + "\n")
    answer.write_text(json.dumps(list(results.values()), indent=1) + "\n")


def key(result: dict[str, Any]) -> tuple[str, str, int]:
    return result["file"], result["operator"], result["occurrence"]


def table() -> Iterator[str]:
    """The rows of the table in dev/mutation.md."""
    yield "| group | mutants | tried | killed | survived | killed, percent |"
    yield "|---|---|---|---|---|---|"
    for group in GROUPS:
        path = RESULTS / f"{group}.json"
        results = json.loads(path.read_text()) if path.exists() else []
        if not results:
            yield f"| {group} | | not run | | | |"
            continue
        survived = [each["outcome"] for each in results].count("survived")
        killed = len(results) - survived
        share = 100 * killed / len(results)
        yield f"| {group} | {results[-1]['of']} | {len(results)} | {killed} | {survived} | {share:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help=", ".join(GROUPS))
    parser.add_argument("--again", action="store_true", help="only the mutants that survived the last run")
    parser.add_argument("--sample", type=int, help="try so many mutants of each group")
    parser.add_argument("--table", action="store_true", help="print the table of the results so far")
    words = parser.parse_args()
    if unknown := set(words.groups) - GROUPS.keys():
        parser.error(f"there is no group {', '.join(sorted(unknown))}: use {', '.join(GROUPS)}")
    if words.table:
        print("\n".join(table()))
        return
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)  # for the processes that tests start
    for group in words.groups or GROUPS:
        print(f"== {group}", flush=True)
        run(group, words.again, words.sample)
    print("\n".join(table()))


if __name__ == "__main__":
    main()
