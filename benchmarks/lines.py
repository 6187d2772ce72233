"""How many lines of code the engine has: blanks, comments and docstrings are not counted.

    python benchmarks/lines.py [REVISION]

Counts mamlnp's array, op, ops, autodiff, tree and compile, the compiler's verifier apart, and the
difference to a git revision, if one is named.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("array.py", "op.py", "ops/", "autodiff.py", "tree.py", "compile/")
APART = "compile/verify.py"


def lines(source: str) -> int:
    """Lines on which there is code."""
    without = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in without | {tokenize.ENDMARKER}:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def sources(revision: str | None) -> dict[str, str]:
    """The files of the engine, by their names in mamlnp/."""
    if revision is None:
        paths = {str(p.relative_to(ROOT / "mamlnp")): p for p in (ROOT / "mamlnp").rglob("*.py")}
        found = {name: path.read_text("utf-8") for name, path in paths.items()}
    else:
        listed = ["git", "ls-tree", "-r", "--name-only", revision, "mamlnp"]
        names = subprocess.check_output(listed, cwd=ROOT, text=True).split()
        found = {
            name.removeprefix("mamlnp/"): subprocess.check_output(
                ["git", "show", f"{revision}:{name}"], cwd=ROOT, text=True
            )
            for name in names
            if name.endswith(".py")
        }
    return {name: text for name, text in found.items() if name.startswith(ROOMS)}


def counted(revision: str | None) -> dict[str, int]:
    """Lines of code a room, and of what is apart."""
    out = dict.fromkeys((*ROOMS, APART), 0)
    for name, text in sources(revision).items():
        room = name if name == APART else next(r for r in ROOMS if name.startswith(r))
        out[room] += lines(text)
    return out


def main() -> None:
    now = counted(None)
    before = counted(sys.argv[1]) if len(sys.argv) > 1 else None
    for room, count in now.items():
        apart = " (apart)" if room == APART else ""
        print(f"{room + apart:28}{count:6}" + (f"{count - before[room]:+6}" if before else ""))
    total = sum(now.values()) - now[APART]
    more = f"{total - sum(before.values()) + before[APART]:+6}" if before else ""
    print(f"{'together':28}{total:6}{more}")


if __name__ == "__main__":
    main()
