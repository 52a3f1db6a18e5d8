"""Several ranks in one process, as threads that meet at every exchange."""

import threading

import torch


class Emulated:
    """One of several ranks; checks that all ranks make the same exchanges.

    Attributes:
        trace: kinds of the exchanges so far.
    """

    def __init__(self, rank, table):
        self.rank, self.size = rank, table.size
        self.trace = []
        self._table = table

    def _meet(self, kind, value):
        self.trace.append(kind)
        table = self._table
        table.slots[self.rank] = kind, value
        table.barrier.wait(30)
        slots = list(table.slots)
        table.barrier.wait(30)
        assert {k for k, _ in slots} == {kind}, slots
        return [v for _, v in slots]

    def swap(self, rows, send, receive):
        assert len(rows) == sum(send)
        everything = self._meet(f"swap {rows.shape[1:]} {rows.dtype}", (rows.clone(), tuple(send)))
        parts = []
        for (other, counts), expected in zip(everything, receive, strict=True):
            part = other.split(list(counts))[self.rank]
            assert len(part) == expected
            parts.append(part)
        return torch.cat(parts)

    def gather(self, values):
        return torch.stack(self._meet(f"gather {values.shape}", values.clone()))

    def share(self, values):
        return self._meet(f"share {values.shape} {values.dtype}", values.clone())[0].clone()


class Table:
    def __init__(self, size):
        self.size = size
        self.slots = [None] * size
        self.barrier = threading.Barrier(size)


def together(size, work):
    """What ``work(ranks)`` returns on each of several ranks; the first error is raised."""
    table = Table(size)
    results, errors = [None] * size, []

    def run(rank):
        try:
            results[rank] = work(Emulated(rank, table))
        except BaseException as error:
            errors.append(error)
            table.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        own = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        raise (own or errors)[0]
    return results
