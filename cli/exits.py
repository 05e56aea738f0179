"""What commands end with, beside 0 (done) and 2 (wrong usage, by typer itself). docs/cli.md has them as a table."""

FAILURE = 1  # refused or failed, as typer and the shell have it; systemd starts processes again that end so
UNREACHABLE = 3  # somebody did not answer in time: trying again may help
ATTENTION = 4  # it was answered, and something in the network wants attention
INTERRUPTED = 130  # by Ctrl-C: 128 and SIGINT, as shells have it
