"""`cmasd report RUN`: one HTML file that shows how a run went, read from its folder alone, finished or not.

Prints what is wrong, if anything, and where the page is; the last line, for programs, is JSON.
"""

import argparse
from pathlib import Path

from jobs.arguments import add_json, print_json, wants_json


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_json(parser)
    parser.add_argument("run", metavar="RUN", help="run folder, local or s3://, finished or not")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the page goes; default RUN/report.html")


def main(args: argparse.Namespace) -> int:
    """Read, write, print."""
    from cmasd.errors import ConfigError
    from cmasd.io.storage import join
    from cmasd.reports.evidence import gather
    from cmasd.reports.page import FILE_NAME, render
    from cmasd.reports.signatures import signatures

    if args.output and not args.output.parent.is_dir():
        raise ConfigError(f"--output: no such folder, got {args.output.parent}. Create it first.")
    evidence = gather(args.run)
    page = render(evidence)
    if args.output:
        args.output.write_text(page, encoding="utf-8")
    else:
        evidence.folder.storage.write(join(evidence.folder.storage.root, FILE_NAME), page.encode())
    target = str(args.output or f"{evidence.folder.address}/{FILE_NAME}")
    found = signatures(evidence)
    for one in found:
        print(f"{one.weight}: {one.title}. {one.says}\n  {one.advice}")
    print(f"report  {target}")
    figures = {"run": evidence.folder.address, "report": target, "state": evidence.state["state"]}
    if wants_json(args):
        print_json({**figures, "signatures": [one.key for one in found]})
    return 0
