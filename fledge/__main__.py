"""The entry point of the command ``fledge`` and of ``python -m fledge``."""

import signal


def main() -> None:
    """Run the command line with the arguments of this process, and exit."""
    # Until a command has something to clean up, Ctrl-C ends fledge at once and without a traceback.
    # A signal that is ignored, as in a background job, stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fledge.cli.app import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
