"""How many threads work on a request."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import faiss
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from adrec import use_threads
from adrec.inference.threads import in_background, side_by_side


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def threads_as_before():
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    with threadpool_limits(user_api="blas"):
        yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


@pytest.mark.usefixtures("threads_as_before")
def test_threads_of_numpy_torch_and_faiss():
    for count in (2, 1):
        use_threads(count)
        found = torch.get_num_threads(), faiss.omp_get_max_threads(), blas_threads()
        assert found == (count, count, {count})


@pytest.mark.usefixtures("threads_as_before")
def test_each_thread_of_a_pool_works_alone():
    use_threads(2)
    with ThreadPoolExecutor(1, initializer=use_threads, initargs=(1,)) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
        assert pool.submit(faiss.omp_get_max_threads).result() == 1
    assert faiss.omp_get_max_threads() == 2  # of this thread


@pytest.mark.usefixtures("threads_as_before")
def test_parts_side_by_side():
    """As many at once as torch has threads, each on one core, results in the parts' order."""
    use_threads(2)
    both = threading.Barrier(2, timeout=60)

    def work(part):
        both.wait()  # passes only if two work at once
        time.sleep(0.02 * (part == 0))  # the first is done last
        return part, torch.get_num_threads()

    assert list(side_by_side(work, [0, 1, 2, 3])) == [(part, 1) for part in range(4)]
    found = torch.get_num_threads(), faiss.omp_get_max_threads(), blas_threads()
    assert found == (2, 2, {2})


@pytest.mark.usefixtures("threads_as_before")
def test_a_part_that_fails_leaves_the_threads_as_they_were():
    use_threads(2)
    with pytest.raises(ValueError, match="invalid literal"):
        list(side_by_side(int, ["1", "broken", "2"]))
    assert torch.get_num_threads() == 2


def test_work_in_the_background(threads_as_before):
    torch.set_num_threads(2)
    assert in_background(torch.get_num_threads) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        in_background(lambda: int("broken"))
