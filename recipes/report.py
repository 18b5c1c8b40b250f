"""A report of a run, of a probe or of fine-tuning, as a page for a browser; several of them side by side.

python recipes/report.py outputs/simclr                         writes outputs/simclr/report.html
python recipes/report.py outputs/simclr outputs/probe-simclr    each its own, and both side by side
python recipes/report.py outputs/simclr outputs/dino --output_file two.html

Runs, probes and fine-tuning write one of their own at their end; this makes it anew of what lies in the folder, also
of a run that has not ended. A page needs no network and no other file. What it tells of is hfssl/report/sections.py.
"""

from dataclasses import dataclass
from pathlib import Path

from hfssl.cli.command import command
from hfssl.commands import first_named


@dataclass
class Report:
    r"""
    > Report

    Args:
        folders (`list[str]`):
            Result folders. They may stand first, without the name of the flag.
        output_file (`str`, *optional*, defaults to `"outputs/report.html"`):
            Where the page goes that puts several side by side.
    """

    folders: list[str]
    output_file: str = "outputs/report.html"


@command
def main():
    from hfssl import RecipeParser
    from hfssl.report.comparison import write_comparison
    from hfssl.report.page import write_report

    (recipe,) = RecipeParser(Report, description=__doc__).parse(first_named("folders"))
    for folder in recipe.folders:
        print(write_report(folder))
    if len(recipe.folders) > 1:
        print(write_comparison(recipe.folders, Path(recipe.output_file)))


if __name__ == "__main__":
    main()
