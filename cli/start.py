"""Where the console script begins: Ctrl-C ends a command that is still being read from the disk without a word.

Reading takes half a second, and nothing has been done by then. This module imports nothing of Godwit's before it has said so.
"""

import signal


def main() -> None:
    """Runs the command line of this process and exits."""
    # Whoever started it may have it ignored (nohup): then it stays so.
    is_handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cli.main import main as run

    if is_handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
