"""Training in several processes: the same run as in one, and an end in a sentence when one of them dies."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from ranks import together

from fastcse.errors import InputError, OptionError, RunError
from fastcse.retrieval.index import CorpusIndex
from fastcse.training import run
from fastcse.training.options import options_of
from fastcse.training.processes import report_failures
from fastcse.training.run import train

HINGE = {"objective": "hsimcse", "noise": 0.0, "margin": 0.3}
# Of the test lane: a bank in parts that is written through, clusters over ranks, candidates in a ring, a queue.
RUNS = {
    "write-through": {**HINGE, "refresh": "write-through", "mini_batch_size": 2},
    "clusterns": {"objective": "clusterns", "margin_weight": 1.0, "clusters": 3, "cluster_threshold": 1.0,
                  "cluster_rate": 0.2},
    "ring": {"objective": "focal", "max_gathered_bytes": 1, "mini_batch_size": 4},
    "moco-queue": {"recipe": "moco-queue", "queue": 20, "mini_batch_size": 3, "batch_size": 8},
}  # fmt: skip
REST = {
    "infonce": {"objective": "infonce"},
    "cached": {"objective": "focal", "mini_batch_size": 3},
    "hsimcse": HINGE,
    "refresh": {**HINGE, "refresh": 2},
    "sscl": {"recipe": "sscl", "batch_size": 8},
    "sncse": {"recipe": "sncse", "batch_size": 8, "view": "none"},
    "simcse-sup": {"recipe": "simcse-sup", "batch_size": 8},
}


@pytest.fixture(scope="module")
def common(still_path, text):
    return {"model": still_path, "pairs": text.triplets, "batch_size": 8, "max_steps": 5, "eval_steps": 3, "lr": 1e-4}


def options(common, folder, **changes):
    return options_of({"output_dir": str(folder), **common, **changes})


def logged(folder):
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    names = ("loss", "grad_norm", "accuracy", "positive_similarity", "hardest_similarity", "margin", "quadruplet")
    return {one["step"]: {n: one[n] for n in names if n in one} for one in entries if "loss" in one}


def given_to(rank, ranks, port):
    return {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def every_run(rank, ranks, common, runs, folder, port):
    """The runs of a rank, and of the first what it refuses and that it is resumed."""
    os.environ |= given_to(rank, ranks, port)
    train_run, drawn = run.EncoderTrainer.run, []

    def drawing(self, checkpoint):
        drawn.append(torch.rand(1).item())
        train_run(self, checkpoint)

    run.EncoderTrainer.run = drawing
    reports = {}
    for name, changes in runs.items():
        report = train(options(common, folder / name, **changes))
        reports[name] = (report.rank, report.processes, report.backend)
    told = []
    first = next(iter(runs))
    for changes in ({"batch_size": 7, "mini_batch_size": None}, runs[first]):
        with pytest.raises(InputError) as caught:
            train(options(common, folder / first, **{k: v for k, v in changes.items() if v is not None}))
        told.append(caught.value)
    before = logged(folder / first)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder / first / "checkpoint-5")
    dist.barrier()
    report = train(options(common, folder / first, resume=True, **runs[first]))
    return reports, told, drawn, report.new_steps, before == logged(folder / first)


def check_runs(common, runs, tmp_path):
    for name, changes in runs.items():
        train(options(common, tmp_path / "one" / name, **changes))
    answers = together(tmp_path, 2, [(every_run, common, runs, tmp_path / "two", free_port())])
    for rank, ((reports, (odd, taken), _, new_steps, is_same),) in enumerate(answers):
        assert isinstance(odd, OptionError)
        assert str(odd) == "batch_size 7 cannot be divided by the 2 processes of the run"
        assert "holds checkpoint-5 of an earlier run: add --resume" in taken.spelled({})
        assert reports == dict.fromkeys(runs, (rank, 2, "cpp"))
        assert new_steps == 2
        assert is_same, "the log of the resumed run is that of the whole one"
    for name in runs:
        one, two = logged(tmp_path / "one" / name), logged(tmp_path / "two" / name)
        assert one.keys() == two.keys() == {1, 2, 3, 4, 5}
        # A recipe's head makes all rows nearly alike at first, and AdamW much of little.
        rel, names = (1e-3, ["loss"]) if "recipe" in runs[name] else (2e-4, one[1].keys())
        for step, values in one.items():
            for what in names:
                assert two[step][what] == pytest.approx(values[what], rel=rel, abs=2e-5), (name, step, what)
    return [drawn for ((_, _, drawn, _, _),) in answers]


def test_two_processes_train_as_one_does(common, tmp_path):
    drawn = check_runs(common, RUNS, tmp_path)
    assert all(mine != other for mine, other in zip(*drawn)), "ranks draw different dropout masks"
    bank = tmp_path / "two" / "write-through" / "checkpoint-5" / "bank"
    parts = [CorpusIndex.load(bank / f"part-{rank}") for rank in range(2)]
    assert [len(part) for part in parts] == [40, 40]
    assert not set(parts[0].ids.tolist()) & set(parts[1].ids.tolist())


@pytest.mark.whole
def test_every_objective_trains_in_two_processes_as_in_one(common, tmp_path):
    check_runs(common, REST, tmp_path)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed"), "[enforce fail] PytorchStreamWriter f"),
        (Exception("Io error: Disk quota exceeded (os error 122)"), "Io error: Disk quota exceeded (os error 122)"),
    ],
)
def test_a_full_disk_is_one_sentence_with_the_checkpoint_that_is_left(tmp_path, error, says):
    with pytest.raises(RunError) as caught, report_failures(tmp_path):
        raise error
    said = str(caught.value)
    assert said.startswith(f"--output-dir '{tmp_path}' could not be written: {says}")
    assert said.endswith("; there is no checkpoint to continue from")
    for step in (9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    with pytest.raises(RunError, match=r"; --resume continues from checkpoint-12$"), report_failures(tmp_path):
        raise error


@pytest.mark.parametrize("error", [ValueError("a fault of ours"), ConnectionError("alone"), InputError("a mistake")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, report_failures(tmp_path):
        raise error
    assert caught.value is error


def command(common, folder, *more):
    return [
        sys.executable, "-m", "fastcse", "train", "--objective", "infonce", "--pairs", common["pairs"], "--model",
        common["model"], "--output-dir", str(folder), "--batch-size", "8", "--eval-steps", "2", *more,
    ]  # fmt: skip


def wait_for(process, path, lines):
    """Until a log has so many lines; a process that ends before is a failure, and a slow one is not."""
    while not (path.is_file() and path.read_text().count("\n") >= lines):
        assert process.poll() is None, f"the process ended before {path} had {lines} lines"
        time.sleep(0.05)


@pytest.mark.whole
def test_a_process_that_dies_ends_the_run_in_a_sentence(common, tmp_path):
    port, out = free_port(), tmp_path / "out"
    given = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    line = command(common, out, "--max-steps", "900")
    processes = [subprocess.Popen(line, env=os.environ | given_to(rank, 2, port), **given) for rank in range(2)]
    try:
        wait_for(processes[0], out / "log.jsonl", 6)
        processes[1].send_signal(signal.SIGKILL)
        _, told = processes[0].communicate()
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 1
    assert "Traceback" not in told
    last = told.strip().splitlines()[-1]
    assert last.startswith("Error: rank 0 of 2 lost another process of the run (")
    assert "/" not in last.split(")")[0]
    assert "; --resume continues from checkpoint-" in last


@pytest.mark.whole
def test_a_run_that_was_killed_goes_on_to_the_same_losses(common, tmp_path):
    steps = ["--max-steps", "60"]
    subprocess.run(command(common, tmp_path / "whole", *steps), check=True, capture_output=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    cut = subprocess.Popen(command(common, tmp_path / "cut", *steps), **quiet)
    # Somewhere in a step, and not at the end of one.
    wait_for(cut, tmp_path / "cut" / "log.jsonl", 20)
    cut.send_signal(signal.SIGKILL)
    assert cut.wait() == -signal.SIGKILL
    more = [*steps, "--resume", "--json"]
    done = subprocess.run(command(common, tmp_path / "cut", *more), check=True, capture_output=True)
    assert 0 < json.loads(done.stdout)["new_steps"] < 60
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")


@pytest.mark.whole
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="two hosts in network namespaces need Linux, root and iproute2",
)
def test_two_hosts_of_a_network_train_as_one_process(common, tmp_path):
    names = [f"fastcse{os.getpid() % 10000}{end}" for end in "ab"]
    made = [
        ["ip", "netns", "add", names[0]], ["ip", "netns", "add", names[1]],
        ["ip", "link", "add", "v0", "netns", names[0], "type", "veth", "peer", "name", "v1", "netns", names[1]],
    ]  # fmt: skip
    for end, name in enumerate(names):
        inside = ["ip", "-n", name]
        made += [
            [*inside, "addr", "add", f"10.77.0.{end + 1}/24", "dev", f"v{end}"],
            [*inside, "link", "set", f"v{end}", "up"], [*inside, "link", "set", "lo", "up"],
        ]  # fmt: skip
    try:
        for line in made:
            if subprocess.run(line, capture_output=True).returncode:
                pytest.skip("this machine lets nobody make network namespaces")
        hosts = []
        for end, name in enumerate(names):
            launch = [
                "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                "--nproc-per-node", "1", "--node-rank", str(end), "--master-addr", "10.77.0.1", "--master-port",
                "29511", *command(common, tmp_path / "two", "--max-steps", "5", "--lr", "1e-4")[1:],
            ]  # fmt: skip
            given = {"GLOO_SOCKET_IFNAME": f"v{end}", "OMP_NUM_THREADS": "1"}
            out = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            hosts.append(subprocess.Popen(launch, env=os.environ | given, **out))
        told = [host.communicate()[0] for host in hosts]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(told)
    train(options(common, tmp_path / "one", objective="infonce"))
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    for step, values in one.items():
        assert two[step]["loss"] == pytest.approx(values["loss"], rel=2e-5)


@pytest.mark.whole
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="a small disk needs root, to mount one")
def test_a_full_disk_ends_the_run_in_a_sentence_and_the_last_checkpoint_survives(common, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        done = subprocess.run(command(common, disk / "out", "--max-steps", "12"), capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        told = done.stderr.strip().splitlines()[-1]
        assert told.startswith(f"Error: --output-dir '{disk / 'out'}' could not be written: ")
        kept = told.rpartition(" ")[2]
        assert told.endswith(f"; --resume continues from {kept}")
        shutil.copytree(disk / "out" / kept, tmp_path / "out" / kept)
        shutil.copy(disk / "out" / "fastcse_train.json", tmp_path / "out")
        more = command(common, tmp_path / "out", "--max-steps", "12", "--resume", "--json")
        assert json.loads(subprocess.run(more, check=True, capture_output=True).stdout)["steps"] == 12
    finally:
        subprocess.run(["umount", str(disk)], check=True)
