"""`python -m data`: look up the columns of the files and the keys of the config."""

import re
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from data.cli import guarded, start
from data.columns import TABLES, columns_of, list_markdown
from data.console import console

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True, help="Look up the columns of the files and the keys of the config.")
def without_command(context: typer.Context) -> None:
    """`python -m data`: the list of commands."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def _without_links(text: str) -> str:
    """Markdown with its links replaced by their texts."""
    return escape(re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text))


def overview() -> Table:
    """Every table: where its files are, and what a row is."""
    table = Table("table", "files", "a row is", box=box.SIMPLE_HEAD)
    for name, kind in TABLES.items():
        table.add_row(name, escape(kind.files), _without_links((kind.row.__doc__ or "").strip()))
    return table


def columns_table(name: str) -> Table:
    """The columns of one table. Raises UserError for an unknown name."""
    title = f"{name}: {escape(TABLES[name].files)}" if name in TABLES else ""
    table = Table("column", "type", "null", "meaning", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for each in columns_of(name):
        nulls = ("may be" if nullable else "" for nullable in each.nullable)
        table.add_row("\n".join(each.names), "\n".join(each.types), "\n".join(nulls), _without_links(each.meaning))
    return table


@app.command(
    help="Show the columns of a table: type, whether it may be null, meaning; without a name, all tables.",
    short_help="Show the columns of a table, or all tables.",
)
def schema(
    table: Annotated[str | None, typer.Argument(help="Name of a table, such as chains or scores.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, as in data/README.md.")] = False,
) -> None:
    """`python -m data schema [TABLE]`."""

    def body() -> None:
        if as_markdown:
            print("\n".join(list_markdown(name) for name in ([table] if table else TABLES)), end="")
        else:
            console.print(columns_table(table) if table else overview())

    guarded(body)


@app.command(
    help="Print every key of the config with its default and its meaning, as in docs/config.md.",
    short_help="Print every key of the config.",
)
def config() -> None:
    """`python -m data config`."""

    def body() -> None:
        from data.config.docs import key_list

        print(key_list(), end="")

    guarded(body)


if __name__ == "__main__":
    start(app, "data")
