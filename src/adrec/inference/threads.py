"""How many threads work on one request.

torch, FAISS and the linear algebra under numpy each keep threads of their own. What a request needs
of them is small, and threads that wait for each other take longer than one: a request is answered
fastest on a single thread, and other cores answer other requests.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import faiss
import torch
from threadpoolctl import threadpool_limits

A = TypeVar("A")
T = TypeVar("T")


def use_threads(count: int) -> None:
    """Have torch, FAISS and numpy work on so many threads.

    Call it in the main thread. The count of FAISS, and that of torch once it has been at work,
    belong to the thread that calls: a pool of threads calls this in each of them, too
    (`ThreadPoolExecutor(4, initializer=use_threads, initargs=(1,))`).
    """
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    threadpool_limits(count, user_api="blas")


def available_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def side_by_side(work: Callable[[A], T], parts: Sequence[A]) -> Iterator[T]:
    """Do something to each part, several at once, each on one core; results in the parts' order.

    As many at once as torch has threads here: whole parts side by side take less time than one
    after the other with its arithmetic spread over the cores.
    """
    of_torch, of_faiss = torch.get_num_threads(), faiss.omp_get_max_threads()
    try:
        with (
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(of_torch, initializer=use_threads, initargs=(1,)) as pool,
        ):
            yield from pool.map(work, parts)
    finally:  # some libraries keep one count for all threads
        torch.set_num_threads(of_torch)
        faiss.omp_set_num_threads(of_faiss)


def in_background(work: Callable[[], T]) -> T:
    """Do something that takes long beside requests, on a thread of its own that uses one core."""
    with ThreadPoolExecutor(1, initializer=use_threads, initargs=(1,)) as pool:
        return pool.submit(work).result()
