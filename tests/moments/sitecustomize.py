"""Tells the test how far the start of a command is, or sends it a signal there.

Python loads this by itself in processes that have this folder in PYTHONPATH. It counts from the
moment when the command has its handlers, the first thing that it does:

``MOMENT="calls N FD"``: after N calls and returns of functions a byte goes to the descriptor FD.
``MOMENT="imports N SIGNAL"``: the search for the N-th module gets the signal.
``MOMENT="count 0 FD"``: at its end the process tells how many of both there were.
"""

import atexit
import os
import signal
import sys

what, number, where = os.environ["MOMENT"].split()
counts = {"calls": 0, "imports": 0}
begun = False


def called(frame, event, argument):
    global begun
    begun = begun or (event == "return" and frame.f_code.co_qualname == "Watch.install")
    counts["calls"] += begun
    if what == "calls" and counts["calls"] > int(number):
        sys.setprofile(None)
        os.write(int(where), b"x")


class Search:
    """Finds nothing, but sees everything that is searched for."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        counts["imports"] += begun
        if what == "imports" and counts["imports"] > int(number):
            sys.meta_path.remove(Search)
            signal.raise_signal(int(where))


def tell():
    os.write(int(where), "{calls} {imports}".format(**counts).encode())


sys.setprofile(called)
sys.meta_path.insert(0, Search)
if what == "count":
    atexit.register(tell)
