"""Real processes of one group, gloo: the jobs of a test on every rank, and what each answered."""

import contextlib
import multiprocessing
import pickle
import queue
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

SECONDS = 300  # a hang ends so, in an error of the collective; a slow machine is none


def _worker(rank, ranks, store, send, jobs):
    """Runs jobs one after another in one group of processes: starting one takes seconds."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks, timeout=timedelta(seconds=SECONDS)
        )
        answers = [job(rank, ranks, *arguments) for job, *arguments in jobs]
        dist.barrier()
        dist.destroy_process_group()
        send.put((rank, pickle.dumps(answers), None))  # bytes: a tensor's memory would end with this process
    except BaseException:
        send.put((rank, None, traceback.format_exc()))


def _collected(answers, started):
    """One answer of each process; one that ends without any is a failure."""
    got = []
    while len(got) < len(started):
        try:
            got.append(answers.get(timeout=5))
        except queue.Empty:
            ended = [process.exitcode for process in started if process.exitcode not in (None, 0)]
            assert not ended, f"processes ended without an answer, with exit codes {ended}"
    return got


def together(tmp_path, ranks, jobs):
    """The answers of every rank to every job; a hang or an error on any rank fails."""
    context = multiprocessing.get_context("spawn")
    answers, store = context.Queue(), str(tmp_path / "store")
    started = [context.Process(target=_worker, args=(r, ranks, store, answers, jobs)) for r in range(ranks)]
    for process in started:
        process.start()
    try:
        got = _collected(answers, started)
        for process in started:
            process.join(timeout=SECONDS)
        assert [process.exitcode for process in started] == [0] * ranks
    finally:
        for process in started:
            with contextlib.suppress(ValueError):
                process.kill()
    errors = [f"rank {rank}:\n{error}" for rank, _, error in got if error]
    assert not errors, "\n".join(errors)
    return [pickle.loads(answer) for _, answer, _ in sorted(got, key=lambda x: x[0])]
