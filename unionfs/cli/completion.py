"""`unionmount completion`: the shell's part of completing our command lines, which click does."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script by which SHELL completes commands.

    \b
      unionmount completion bash > ~/.local/share/bash-completion/completions/unionmount
      unionmount completion zsh > ~/.zfunc/_unionmount
      unionmount completion fish > ~/.config/fish/completions/unionmount.fish
    """
    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None, "click has each of the choices"
    click.echo(kind(root, {}, "unionmount", "_UNIONMOUNT_COMPLETE").source())
