"""`evengrad run`: an unmodified script runs as Python runs it, and is guarded."""

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from evengrad.cli import main
from evengrad.cli._run_script import OPTIONS
from evengrad.runlog import read

TRAINING = """
    import hashlib, json, sys
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    class Data(Dataset):
        def __len__(self):
            return 40
        def __getitem__(self, index):
            x = torch.randn(6, generator=torch.Generator().manual_seed(index))
            return x, x[:3].argmax()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
            self.head = nn.Linear(16, 3)
        def forward(self, x):
            return self.head(self.body(x))

    OPTIMIZERS = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
        "foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    }

    def train(make, accumulate=1, workers=0, context=None, epochs=2):
        torch.manual_seed(3)
        model = Net()
        optimizer = make(model.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        data = DataLoader(Data(), batch_size=5, shuffle=True, num_workers=workers, multiprocessing_context=context)
        losses = []
        for epoch in range(epochs):
            for number, (x, y) in enumerate(data, start=1):
                loss = nn.functional.cross_entropy(model(x), y) / accumulate
                loss.backward()
                losses.append(loss.item())
                if number % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
            scheduler.step()
        digest = hashlib.sha256()
        for tensor in [*model.state_dict().values(), *map(torch.tensor, losses), torch.get_rng_state()]:
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()
"""
ALONE = """
    if __name__ == "__main__":
        print(torch.get_num_threads(), torch.get_num_interop_threads())
        for name, make in OPTIMIZERS.items():
            for accumulate in (1, 2):
                print(name, accumulate, train(make, accumulate))
"""
WORKERS = """
    if __name__ == "__main__":
        for context in ("fork", "spawn"):
            print(context, train(OPTIMIZERS["sgd"], workers=1, context=context, epochs=1))
"""
ONE_BAD_BATCH = """
    import sys
    import torch
    from torch import nn
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(20):
        x = torch.full((2, 3), float("nan")) if step == 7 else torch.ones(2, 3)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    sys.exit(0 if all(p.isfinite().all() for p in model.parameters()) else "the weights are gone")
"""
PARALLEL = """
    import hashlib, os, sys
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    def train(rank, bad):
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        generator = torch.Generator().manual_seed(rank)
        digest = hashlib.sha256()
        for step in range(12):
            x = torch.randn(5, 4, generator=generator)
            if bad and step == 4 and rank == 1:
                x.fill_(float("nan"))
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            digest.update(loss.detach().numpy().tobytes())
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        return f"{model.module[0].weight.isfinite().all()} {digest.hexdigest()}\\n"

    if __name__ == "__main__":
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        with open(f"{sys.argv[1]}-{rank}", "w") as file:
            file.write(train(rank, bad=False) + train(rank, bad=True))
        dist.barrier()
        dist.destroy_process_group()
"""


def script(folder, *texts, name="train.py"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(textwrap.dedent(text) for text in texts))
    return path


def python(*args, cwd, **settings):
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, **settings)


def guarded(*args, cwd, **settings):
    return python("-m", "evengrad", "run", *args, cwd=cwd, **settings)


def said(done):
    """What evengrad itself wrote, and the rest of standard error."""
    lines = done.stderr.splitlines(keepends=True)
    ours = [line for line in lines if line.startswith("evengrad: ")]
    return "".join(ours), "".join(line for line in lines if line not in ours)


def test_with_clipping_off_a_training_is_equal_to_the_bit(tmp_path):
    train = script(tmp_path, TRAINING, ALONE)
    plain = python(train, cwd=tmp_path)
    done = guarded("--clip", "off", "--log", "run", train, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr
    assert len(set(re.findall("[0-9a-f]{64}", done.stdout))) >= 4, "the trainings differ from one another"
    ours, rest = said(done)
    assert rest == plain.stderr == ""
    wanted = [f"{kind} of Net: {steps} steps" for kind in ("SGD", "AdamW", "AdamW") for steps in (16, 8)]
    assert re.findall(r"\w+ of Net: \d+ steps(?=, 0 clipped, 0 skipped)", ours) == wanted
    record = read(tmp_path / "run-6")
    assert record.complete
    assert record.parameters[-2:] == ("head.weight", "head.bias")


def test_with_a_small_threshold_every_step_is_clipped(tmp_path):
    train = script(tmp_path, TRAINING, "print(train(OPTIMIZERS['sgd']))\n")
    done = guarded("--clip", "1e-3", train, cwd=tmp_path)
    assert said(done)[0] == "evengrad: SGD of Net: 16 steps, 16 clipped, 0 skipped\n"


def test_loaders_with_worker_processes_are_equal_to_the_bit(tmp_path):
    train = script(tmp_path, TRAINING, WORKERS)
    plain = python("-W", "ignore", train, cwd=tmp_path)
    done = python("-W", "ignore", "-m", "evengrad", "run", "--clip=off", train, cwd=tmp_path)
    assert plain.stdout.count("\n") == 2, plain.stderr
    assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr
    assert said(done)[0].count("SGD of Net: 8 steps, 0 clipped, 0 skipped") == 2, "and workers say nothing"


def test_one_bad_batch_ends_a_plain_run_and_not_a_guarded_one(tmp_path):
    train = script(tmp_path, ONE_BAD_BATCH)
    plain = python(train, cwd=tmp_path)
    assert (plain.returncode, plain.stderr) == (1, "the weights are gone\n")
    done = guarded("--log=run", train, cwd=tmp_path)
    assert done.returncode == 0
    ours, rest = said(done)
    log = f"; log: {tmp_path / 'run'}"
    assert ours == f"evengrad: AdamW of Sequential: 20 steps, 0 clipped, 1 skipped{log}\n"
    assert rest.startswith("step 7 skipped (1 in a row): ")
    assert "0.weight" in rest
    assert [reading.step for reading in read(tmp_path / "run").readings if reading.skipped] == [7]
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) in {0, 1}
    assert "0.weight" in (tmp_path / "page.html").read_text()


def _torchrun_once(folder, *args):
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    return python(*run, "--rdzv-endpoint", "localhost:0", *args, cwd=folder)


def torchrun(cwd, *words):
    """Run under torchrun; again where gloo aborts while it is taken down, as it does now and then without us too."""
    for _ in range(4):
        done = _torchrun_once(cwd, *words)
        if "terminate called without an active exception" not in done.stderr:
            break
    return done


def test_under_torchrun_all_ranks_are_guarded_and_equal_to_the_bit(tmp_path):
    train = script(tmp_path, PARALLEL)
    plain = torchrun(tmp_path, train, "plain")
    done = torchrun(tmp_path, "-m", "evengrad", "run", "--clip", "off", "--run-log", "run", train, "guarded")
    assert (plain.returncode, done.returncode) == (0, 0), plain.stderr + done.stderr
    for rank in (0, 1):
        healthy, sick = (tmp_path / f"guarded-{rank}").read_text().splitlines()
        plain_healthy, plain_sick = (tmp_path / f"plain-{rank}").read_text().splitlines()
        assert healthy == plain_healthy
        assert (plain_sick[:5], sick[:5]) == ("False", "True "), "a bad batch on one rank is skipped on both"
        record = read(tmp_path / "run", rank=rank)
        assert record.parameters == ("0.weight", "0.bias", "2.weight", "2.bias"), "without `module.`"
        assert len(record.readings) == 12
        assert record.complete
        assert sum(reading.skipped for reading in read(tmp_path / "run-2", rank=rank).readings) == 1
    line = "evengrad: SGD of Sequential: 12 steps, 0 clipped, {} skipped; log: {}\n"
    wanted = line.format(0, tmp_path / "run") + line.format(1, tmp_path / "run-2")
    assert said(done)[0] == wanted, "one rank speaks"


def test_too_many_skips_end_the_script_with_an_error_that_is_shown_whole(tmp_path):
    train = script(tmp_path, ONE_BAD_BATCH.replace("step == 7", "step > 7"))
    done = guarded("--max-consecutive-skips=3", "--log", "run", "train.py", cwd=tmp_path)
    assert done.returncode == 1
    ours, rest = said(done)
    assert ours == f"evengrad: AdamW of Sequential: 12 steps, 0 clipped, 4 skipped; log: {tmp_path / 'run'}\n"
    line = train.read_text().splitlines().index("    optimizer.step()") + 1
    assert f'Traceback (most recent call last):\n  File "{train}", line {line}, in <module>\n' in rest
    assert "TooManySkipsError: gradients: got 4 skipped steps in a row" in rest.splitlines()[-1]
    assert not read(tmp_path / "run").complete, "the log says that the run was cut off"


def test_ctrl_c_in_a_training_leaves_summary_log_and_status(tmp_path):
    text = ONE_BAD_BATCH.replace("range(20)", "range(10**9)")
    train = script(tmp_path, text.replace("optimizer.step()", "optimizer.step(); print(step)"))
    command = [sys.executable, "-u", "-m", "evengrad", "run", "--log", "run", train]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stdout.readline() == "0\n"
            os.kill(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert re.search(r"evengrad: AdamW of Sequential: \d+ steps?,", errors)
    assert errors.endswith("KeyboardInterrupt\n")
    assert not read(tmp_path / "run").complete


def test_torch_is_imported_by_the_script_when_and_as_it_wants(tmp_path):
    train = script(
        tmp_path,
        """
        import os, sys
        assert not {"torch", "numpy"} & set(sys.modules)
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch
        from importlib.util import find_spec
        print(torch.get_num_threads(), type(torch.__spec__.loader).__name__, vars(torch.__spec__.loader).keys())
        print(find_spec("torch") is torch.__spec__, [type(one) for one in sys.meta_path])
        """,
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    plain, done = (run(train, cwd=tmp_path, env=environment) for run in (python, guarded))
    assert done.stdout == plain.stdout
    assert done.stdout.startswith("1 "), "what the script sets before its import counts"
    assert said(done) == ("evengrad: no step of a torch optimizer was seen: nothing was guarded\n", plain.stderr)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "script: got none, want a Python file"),
        (["nothing.py"], "script nothing.py: got no such file"),
        ([""], "script : got a folder"),
        (["-"], "script -: got no such file"),
        (["FOLDER"], "got a folder, want a Python file; for a package: -m NAME"),
        (["a\0b.py"], "ValueError: embedded null byte"),
        (["--", "--clip"], "script --clip: got no such file"),
        (["-m"], "-m: got nothing after it"),
        (["-m", "no.such.module"], "module no.such.module: got no such module"),
        (["-m", "evengrad.nouns"], "module evengrad.nouns: got a package without __main__"),
        (["-m", "sys"], "module sys: got one without Python code"),
        (["-m", ".relative"], "module .relative: got "),
        (["-m", ""], "module : got "),
        (["--clip", "tight", "x.py"], "--clip: got 'tight', want off or a positive number"),
        (["--clip", "-1", "x.py"], "--clip: got '-1'"),
        (["--clip", "0", "x.py"], "--clip: got '0'"),
        (["--clip=nan", "x.py"], "--clip: got 'nan'"),
        (["--clip"], "--clip: got nothing after it"),
        (["--max-consecutive-skips", "1.5", "x.py"], "--max-consecutive-skips: got '1.5'"),
        (["--max-consecutive-skips", "-1", "x.py"], "--max-consecutive-skips: got '-1'"),
        (
            ["--clipp", "1", "x.py"],
            "option: got --clipp, want -m, --clip, --log, --run-log, --max-consecutive-skips; perhaps",
        ),
        (["-x", "x.py"], "options of the script come after it"),
        (["--log", "FOLDER", "x.py"], "a folder that holds something else, want a run directory or a new name"),
        (["--log", "FOLDER/mine", "x.py"], "got a file, want a run directory"),
        (["--log", "", "x.py"], "got no name"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_status_2(words, wanted, tmp_path, capsys, monkeypatch):
    for name in ("argv", "path", "meta_path"):
        monkeypatch.setattr(sys, name, [*getattr(sys, name)])
    script(tmp_path, "mine", name="mine")
    assert main(["run", *(word.replace("FOLDER", str(tmp_path)) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert wanted in captured.err
    assert captured.err.startswith("evengrad: error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_script_that_may_not_be_read_is_refused(tmp_path, capsys):
    path = script(tmp_path, "pass")
    path.chmod(0)
    assert main(["run", str(path)]) == 2
    assert "PermissionError" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    assert main(["run", "--help"]) == 0
    shown = set(re.findall(r"--[a-z-]+(?= (?:[A-Z]|off))", capsys.readouterr().out))
    assert shown == set(OPTIONS)


def test_a_program_that_cannot_be_loaded_leaves_no_guard_behind():
    from torch.optim import optimizer

    before = dict(optimizer._global_optimizer_pre_hooks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["evengrad"])
        assert main(["run", "-m", "no.such.module"]) == 2
    assert dict(optimizer._global_optimizer_pre_hooks) == before
