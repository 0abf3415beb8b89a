"""A shell that starts the suite in the background has it ignore SIGINT, which some tests send."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
