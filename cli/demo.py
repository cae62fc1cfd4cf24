"""``weightspace demo``: align and merge two networks on real data, in a minute."""

from __future__ import annotations

from dataclasses import asdict

from weightspace.cli import commands, options
from weightspace.cli.printing import echo
from weightspace.cli.progress import progress
from weightspace.cli.reports import echo_files, echo_report


@commands.command("demo")
@options.output(
    "Plot to write (.png, .svg, .pdf).",
    required=False,
    kind="file",
    default="weightspace-demo.png",
    show_default=True,
)
@options.as_json
def command(output: str, as_json: bool) -> None:
    """Bring two independently trained networks into one basin, and plot the loss between them.

    Train two networks on handwritten digits from two seeds, derive and verify their spec, match one to the other,
    merge them, and measure the loss along the path between them, before and after matching.

    \b
    Example:
      weightspace demo -o demo.png
    """
    from weightspace.demo import demo

    with progress("demo") as update:
        report = demo(output, on_progress=lambda at: update(at.index, at.total, at.name))
    if as_json:
        figures = asdict(report)
        echo_report(figures, output=figures.pop("picture"), files=[output], task="digits-mlp", split="test")
        return
    rows = (
        ("", "naive", "matched"),
        (
            f"barrier of the test loss (nats, {report.points} positions)",
            f"{report.naive_barrier:.3f}",
            f"{report.matched_barrier:.3f}",
        ),
        (
            "accuracy at the midpoint",
            f"{report.naive_midpoint_accuracy:.1%}",
            f"{report.matched_midpoint_accuracy:.1%}",
        ),
        ("accuracy of the endpoints", *(f"{share:.1%}" for share in report.end_accuracies)),
    )
    for name, *cells in rows:
        echo(f"{name:44s}" + "".join(f"{cell:>12s}" for cell in cells))
    echo(
        f"distance reduced by {report.l2_reduction:.1%}; "
        f"{report.groups} groups, spec verified to {report.spec_error:.1e}"
    )
    echo(f"{report.seconds:.1f} s")
    echo_files([output])
