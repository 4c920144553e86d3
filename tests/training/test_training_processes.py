"""Training in several processes: the same run as in one, and an end in a sentence when one of them dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from ranks import together
from tiny_encoder import sentences, write_tiny_encoder

from fastcse.errors import InputError
from fastcse.training.options import TrainOptions
from fastcse.training.run import train

RUNS = {
    "infonce": {"objective": "infonce"},
    "cached": {"objective": "focal", "mini_batch_size": 3},
    "hsimcse": {"objective": "hsimcse", "objective_options": {"noise": 0.0, "margin": 0.3}},
    "write-through": {
        "objective": "hsimcse", "objective_options": {"noise": 0.0, "margin": 0.3}, "lr": 1e-3,
        "bank_options": {"refresh": "write-through"}, "mini_batch_size": 2,
    },
    "refresh": {
        "objective": "hsimcse", "objective_options": {"noise": 0.0, "margin": 0.3}, "lr": 1e-3,
        "bank_options": {"refresh": 2},
    },
    "ring": {"objective": "focal", "max_gathered_bytes": 1, "mini_batch_size": 4},
    "clusterns": {
        "objective": "clusterns", "objective_options": {"margin_weight": 1.0},
        "cluster_options": {"clusters": 3, "cluster_threshold": 1.0, "cluster_rate": 0.2},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An encoder without dropout, whose runs can be compared, and pairs for it."""
    folder = tmp_path_factory.mktemp("data")
    texts = sentences(80)
    pairs = folder / "pairs.tsv"
    pairs.write_text("".join(f"{a}\t{b}\n" for a, b in zip(texts[:40], texts[40:])))
    return {"model": write_tiny_encoder(folder, dropout=0.0), "pairs": str(pairs)}


def options(data, folder, **changes):
    return TrainOptions(
        **{"output_dir": str(folder), "batch_size": 8, "max_steps": 5, "eval_steps": 3} | data | changes
    )


def logged(folder):
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    names = ("loss", "grad_norm", "accuracy", "positive_similarity", "hardest_similarity", "margin", "quadruplet")
    return {one["step"]: {n: one[n] for n in names if n in one} for one in entries if "loss" in one}


def launched(rank, ranks, port):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def every_run(rank, ranks, data, folder, port):
    launched(rank, ranks, port)
    reports = {}
    for name, changes in RUNS.items():
        report = train(options(data, folder / name, **changes))
        reports[name] = (report.rank, report.processes, report.backend)
    with pytest.raises(InputError) as caught:
        train(options(data, folder / "odd", batch_size=7))
    return reports, str(caught.value)


def resumed_run(rank, ranks, data, folder, port):
    launched(rank, ranks, port)
    changes = RUNS["write-through"]
    with pytest.raises(InputError) as caught:
        train(options(data, folder / "write-through", **changes))
    shutil_free = folder / "write-through"
    if rank == 0:
        shutil.rmtree(shutil_free / "checkpoint-5")
    import torch.distributed as dist

    dist.barrier()
    report = train(options(data, folder / "write-through", resume=True, **changes))
    return str(caught.value), report.new_steps


def test_two_processes_train_as_one_does(data, tmp_path):
    for name, changes in RUNS.items():
        train(options(data, tmp_path / "one" / name, **changes))
    answers = together(tmp_path, 2, [(every_run, data, tmp_path / "two", free_port())])
    for rank, ((reports, odd),) in enumerate(answers):
        assert odd == "--batch-size 7 cannot be divided by the 2 processes of the run"
        for name in RUNS:
            assert reports[name] == (rank, 2, "cpp")
    for name in RUNS:
        one, two = logged(tmp_path / "one" / name), logged(tmp_path / "two" / name)
        assert one.keys() == two.keys() == {1, 2, 3, 4, 5}
        for step, values in one.items():
            for what, value in values.items():
                assert two[step][what] == pytest.approx(value, rel=2e-4, abs=2e-5), (name, step, what)
    before = logged(tmp_path / "two" / "write-through")
    for told, new_steps in (answer for (answer,) in together(
        tmp_path / "two", 2, [(resumed_run, data, tmp_path / "two", free_port())]
    )):  # fmt: skip
        assert "holds checkpoint-5 of an earlier run" in told
        assert new_steps == 2
    assert logged(tmp_path / "two" / "write-through") == before


def command(data, folder, *more):
    return [
        sys.executable, "-m", "fastcse", "train", "--objective", "infonce", "--pairs", data["pairs"], "--model",
        data["model"], "--output-dir", str(folder), "--batch-size", "8", "--eval-steps", "2", *more,
    ]  # fmt: skip


def wait_for(path, holds, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.is_file() and holds(path.read_text()):
            return
        time.sleep(0.02)
    pytest.fail(f"{path} did not come")


def test_a_process_that_dies_ends_the_run_in_a_sentence(data, tmp_path):
    port, processes = free_port(), []
    for rank in range(2):
        given = {
            "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        processes.append(subprocess.Popen(
            command(data, tmp_path / "out", "--max-steps", "900"), env=os.environ | given, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    try:
        wait_for(tmp_path / "out" / "log.jsonl", lambda text: text.count("\n") > 5)
        processes[1].send_signal(signal.SIGKILL)
        start = time.monotonic()
        _, told = processes[0].communicate(timeout=60)
        assert time.monotonic() - start < 60
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 1
    assert "Traceback" not in told
    last = told.strip().splitlines()[-1]
    assert last.startswith("Error: rank 0 of 2 lost another process of the run (")
    assert "/" not in last.split(")")[0]
    assert "; --resume continues from checkpoint-" in last


def test_a_run_that_was_killed_goes_on_to_the_same_losses(data, tmp_path):
    steps = ["--max-steps", "400"]
    subprocess.run(command(data, tmp_path / "whole", *steps), check=True, capture_output=True)
    cut = subprocess.Popen(
        command(data, tmp_path / "cut", *steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # Somewhere in a step, and not at the end of one.
    wait_for(tmp_path / "cut" / "log.jsonl", lambda text: text.count("\n") > 20)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert cut.returncode == -signal.SIGKILL
    done = subprocess.run(
        command(data, tmp_path / "cut", *steps, "--resume", "--json"), check=True, capture_output=True
    )
    assert 0 < json.loads(done.stdout)["new_steps"] < 400
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="two hosts in network namespaces need Linux, root and iproute2",
)
def test_two_hosts_of_a_network_train_as_one_process(data, tmp_path):
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
                "29511",
                *command(data, tmp_path / "two", "--max-steps", "5")[1:],
            ]  # fmt: skip
            given = {"GLOO_SOCKET_IFNAME": f"v{end}", "OMP_NUM_THREADS": "1"}
            hosts.append(subprocess.Popen(
                launch, env=os.environ | given, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ))  # fmt: skip
        told = [host.communicate(timeout=180)[0] for host in hosts]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(told)
    train(options(data, tmp_path / "one", objective="infonce"))
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    for step, values in one.items():
        assert two[step]["loss"] == pytest.approx(values["loss"], rel=2e-5)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="a small disk needs root, to mount one")
def test_a_full_disk_ends_the_run_in_a_sentence_and_the_last_checkpoint_survives(data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        run = subprocess.run(command(data, disk / "out", "--max-steps", "12"), capture_output=True, text=True)
        assert run.returncode == 1, run.stderr
        assert "Traceback" not in run.stderr
        told = run.stderr.strip().splitlines()[-1]
        assert told.startswith(f"Error: --output-dir '{disk / 'out'}' could not be written: ")
        kept = told.rpartition(" ")[2]
        assert told.endswith(f"; --resume continues from {kept}")
        shutil.copytree(disk / "out" / kept, tmp_path / "out" / kept)
        shutil.copy(disk / "out" / "fastcse_train.json", tmp_path / "out")
        more = command(data, tmp_path / "out", "--max-steps", "12", "--resume", "--json")
        done = subprocess.run(more, check=True, capture_output=True)
        assert json.loads(done.stdout)["steps"] == 12
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_that_has_ended_is_not_trained_further(data, tmp_path):
    whole = train(options(data, tmp_path / "out", objective="infonce"))
    log = (tmp_path / "out" / "log.jsonl").read_text()
    again = train(options(data, tmp_path / "out", objective="infonce", resume=True))
    assert (again.steps, again.new_steps, again.loss) == (5, 0, whole.loss)
    entries = [json.loads(line) for line in log.splitlines()]
    assert logged(tmp_path / "out") == {
        one["step"]: logged(tmp_path / "out")[one["step"]] for one in entries if "accuracy" in one
    }


def test_an_unreadable_file_of_options_is_one_sentence(data, tmp_path):
    train(options(data, tmp_path / "out", objective="infonce"))
    (tmp_path / "out" / "checkpoint-best").mkdir()
    (tmp_path / "out" / "fastcse_train.json").write_text("")
    with pytest.raises(
        InputError, match=r"--resume cannot read '.*fastcse_train.json': not the JSON that a run writes"
    ):
        train(options(data, tmp_path / "out", objective="infonce", resume=True))
    (tmp_path / "out" / "fastcse_train.json").write_text('{"processes": 3}')
    with pytest.raises(InputError, match="the run has 1 processes, but the run that --resume continues had 3"):
        train(options(data, tmp_path / "out", objective="infonce", resume=True))
