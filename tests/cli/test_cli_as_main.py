"""`evengrad run` runs a script or a module as Python itself would."""

import re
import subprocess
import sys
import textwrap

import pytest


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


WORLD = """
    '''A docstring.'''
    import __main__, inspect, json, pickle, sys

    class Thing:
        pass

    value: int = 3
    if __name__ == "__main__":
        spec = __spec__ and [__spec__.name, __spec__.origin]
        names = sorted(name for name in vars(__main__) if name != "json")
        print(json.dumps([__file__, sys.argv, sys.path, __package__, spec, type(__loader__).__name__, names, __doc__]))
        print(type(pickle.loads(pickle.dumps(Thing()))) is __main__.Thing, inspect.getsource(Thing))
        print(sorted({"torch", "numpy", "tyro", "rich", "evengrad"} & set(sys.modules)), __annotations__, __cached__)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "--help", "-m", "--clip", "x"],
        ["./deep/../train.py"],
        ["link.py"],
        ["-m", "train", "--log"],
        ["-m", "pkg.train", "a"],
        ["-m", "pkg"],
    ],
)
def test_a_program_sees_the_world_that_python_gives_it(tmp_path, words):
    (tmp_path / "deep").mkdir()
    script(tmp_path, WORLD)
    for name in ("__init__.py", "train.py", "__main__.py"):
        script(tmp_path / "pkg", "" if name == "__init__.py" else WORLD, name=name)
    script(tmp_path / "elsewhere", WORLD)
    (tmp_path / "link.py").symlink_to(tmp_path / "elsewhere" / "train.py")
    plain = python(*words, cwd=tmp_path)
    done = guarded(*words, cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert done.stdout == plain.stdout.replace("\n[] {", "\n['evengrad'] {")
    assert done.returncode == 0
    assert done.stderr == "evengrad: the script did not import torch: nothing was guarded\n"
    assert not list(tmp_path.glob("__pycache__/train*")) or words[0] == "-m"


ENDINGS = {
    "falls off the end": "pass",
    "status": "import sys; sys.exit(7)",
    "message": "import sys; sys.exit('no data')",
    "none": "raise SystemExit",
    "error": "def f():\n    return {}['loss']\n\nf()",
    "chained": "try:\n    1 / 0\nexcept ZeroDivisionError as err:\n    raise ValueError('bad\\nrate') from err",
    "group": "raise ExceptionGroup('two', [ValueError('a'), KeyError('b')])",
    "syntax": "def f(:\n    pass",
    "import": "import no_such_module",
    "ctrl-c": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time; time.sleep(9)",
    "own hook": "import sys\nsys.excepthook = lambda *args: print('mine', args[0], args[2].tb_lineno)\n1 / 0",
    "evengrad's": "from evengrad.nouns import TaskError\nraise TaskError('module train.py', came='a', wanted='b')",
    "at exit": "import atexit\natexit.register(lambda: print('bye', __name__, late))\nlate = 3",
    "thread": "import threading as t, time\nt.Thread(target=lambda: (time.sleep(0.1), print(late))).start()\nlate = 3",
    "os._exit": "import os\nos._exit(5)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_ends_as_under_python(tmp_path, ending):
    script(tmp_path, ENDINGS[ending] + "\n")
    plain, done = python("train.py", cwd=tmp_path), guarded("train.py", cwd=tmp_path)
    assert (done.returncode, done.stdout, said(done)[1]) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.parametrize("ending", ["status", "message", "error", "chained", "ctrl-c", "thread"])
def test_a_module_ends_as_under_python(tmp_path, ending):
    script(tmp_path / "pkg", ENDINGS[ending] + "\n")
    plain, done = python("-m", "pkg.train", cwd=tmp_path), guarded("-m", "pkg.train", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)
    assert said(done)[1] == re.sub(r'  File "<frozen runpy>".*\n', "", plain.stderr)


@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize("text", ["def f(:", "# coding: nothing-known", "x = 1\0"])
def test_a_program_that_is_no_python_ends_with_a_syntax_error_and_status_1(tmp_path, module, text):
    (tmp_path / "train.py").write_text(text)
    done = guarded(*(["-m", "train"] if module else ["train.py"]), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("SyntaxError: ")
    assert "evengrad/" not in done.stderr


def test_a_process_that_the_script_forks_says_nothing(tmp_path):
    train = script(tmp_path, "import os\nif os.fork():\n    os.wait()\nelse:\n    print('child')\n")
    done = guarded(train, cwd=tmp_path)
    assert done.stdout == "child\n"
    assert done.stderr.count("evengrad: ") == 1


def test_a_module_whose_package_raises_shows_that(tmp_path):
    script(tmp_path / "pkg", "import no_such_module\n", name="__init__.py")
    script(tmp_path / "pkg", "pass\n")
    done = guarded("-m", "pkg.train", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")
    assert f'File "{tmp_path / "pkg" / "__init__.py"}", line 1' in done.stderr
