"""The ``windlass`` command, and how each way it can fail looks and exits.

Exit codes: 0 done, 1 failed with one line on stderr, 2 wrong usage, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from windlass import __version__
from windlass.cli.chat import chat
from windlass.cli.convert import convert
from windlass.cli.doctor import doctor
from windlass.cli.list import list_models
from windlass.cli.pull import pull
from windlass.cli.rm import rm
from windlass.cli.serve import serve
from windlass.cli.show import show
from windlass.errors import WindlassError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="windlass", message="%(prog)s %(version)s")
def windlass() -> None:
    """Run language models on this machine."""


windlass.add_command(chat)
windlass.add_command(convert)
windlass.add_command(doctor)
windlass.add_command(list_models)
windlass.add_command(pull)
windlass.add_command(rm)
windlass.add_command(serve)
windlass.add_command(show)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    try:
        # What commands are told by `obj`: whether they are all that the process does.
        result = windlass.main(arguments, prog_name="windlass", standalone_mode=False, obj=arguments is None)
        sys.stdout.flush()
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.Abort:  # what click makes of KeyboardInterrupt
        return EXIT_INTERRUPTED
    except (WindlassError, click.ClickException) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        return EXIT_FAILED
    except BrokenPipeError:
        # Whoever read our output has gone. What Python would still flush at exit goes nowhere instead.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return result if isinstance(result, int) else 0
