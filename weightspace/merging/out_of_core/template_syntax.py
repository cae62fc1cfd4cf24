"""Syntax of Jinja chat templates, as transformers parses them. Templates are parsed, never run."""

from __future__ import annotations

from weightspace.errors import WeightspaceError


def check_syntax(template: str, name: str) -> None:
    """Check that a chat template can be parsed; without jinja2 nothing is checked.

    Args:
        template: Jinja source.
        name: name of the template in the error.

    Raises:
        WeightspaceError: it cannot be parsed, or uses an unknown filter or test.
    """
    try:
        from jinja2 import Environment, TemplateSyntaxError, nodes
        from jinja2.ext import Extension
        from jinja2.parser import Parser
    except ImportError:
        return

    class Generation(Extension):
        """The block ``generation`` of transformers, which marks the assistant's tokens."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(template)
    except TemplateSyntaxError as error:
        raise _invalid(name, f"line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise _invalid(name, "its expressions are nested too deeply") from error
    for kind, known in ((nodes.Filter, environment.filters), (nodes.Test, environment.tests)):
        for node in tree.find_all(kind):
            if node.name not in known:
                raise _invalid(name, f"line {node.lineno}: no {kind.__name__.lower()} named {node.name!r}")


def _invalid(name: str, problem: str) -> WeightspaceError:
    """Return the error for a template that cannot be used."""
    problem = " ".join(problem.split())[:200].rstrip(".")
    return WeightspaceError(f"{name} is not a valid Jinja template, {problem}. Expected one that transformers parses.")
