"""Jobs on threads: each once, errors told, no deadlock from inside a job or in a child process."""

import multiprocessing
import threading
import time

import pytest
import torch

from fourdiffusion.ops.parallel import run_jobs


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_job_runs_once_on_as_many_threads_as_torch_has() -> None:
    done, names = [], set()

    def work(job: int) -> None:
        time.sleep(0.002)
        done.append(job)
        names.add(threading.current_thread().name)

    run_jobs(work, 40)
    assert sorted(done) == list(range(40)) and len(names) == 2
    torch.set_num_threads(1)
    names.clear()
    run_jobs(work, 5)
    assert names == {threading.main_thread().name}
    run_jobs(work, 0)


def test_a_free_thread_takes_the_work_of_a_slow_one() -> None:
    done: dict[str, int] = {}

    def work(job: int) -> None:
        name = threading.current_thread().name
        time.sleep(0.05 if name == threading.main_thread().name else 0.001)
        done[name] = done.get(name, 0) + 1

    run_jobs(work, 20)
    assert done[threading.main_thread().name] <= 3


def test_the_error_of_a_job_is_raised() -> None:
    def work(job: int) -> None:
        if job == 7:
            raise ZeroDivisionError("job 7")

    with pytest.raises(ZeroDivisionError, match="job 7"):
        run_jobs(work, 10)


def test_jobs_may_have_jobs() -> None:
    done: list[int] = []
    run_jobs(lambda _: run_jobs(done.append, 3), 8)
    assert sorted(done) == sorted(list(range(3)) * 8)


def _child(queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(2)
    done: list[int] = []
    run_jobs(done.append, 20)
    queue.put(len(done))


def test_a_forked_process_has_threads_of_its_own() -> None:
    run_jobs(lambda _: time.sleep(0.001), 4)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue,))
    process.start()
    assert queue.get(timeout=20) == 20
    process.join(20)
