"""A toy client in a process of its own: toy_client.py [--delay S] [--blind] ADDRESS [PORT]."""

import argparse
import sys

from ipi_support import NATOMS, Toy

from dpa3sim.clients.ipi import client as client_module
from dpa3sim.clients.ipi.client import IPIClient
from dpa3sim.clients.ipi.wire import Address
from dpa3sim.common.errors import Dpa3simError

parser = argparse.ArgumentParser()
parser.add_argument("--delay", type=float, default=0.0)
parser.add_argument("--blind", action="store_true", help="compute without reading ahead")
parser.add_argument("address", nargs="+")
args = parser.parse_args()
if args.blind:
    client_module.Connection.readable = lambda self, timeout, *others: timeout < 0
where = args.address
address = Address.unix(where[0]) if len(where) == 1 else Address(host=where[0], port=int(where[1]))


class Loud(Toy):
    def __call__(self, cells, positions):
        print("computing", flush=True)
        return super().__call__(cells, positions)


try:
    print(IPIClient(Loud(delay=args.delay), NATOMS, address, wait=20.0).run())
except Dpa3simError as error:
    print(error)
    sys.exit(error.exit_code)
