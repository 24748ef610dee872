"""The command `snowmelt`, from a clone and from a wheel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snowmelt import cli, doctor
from tests.test_readme import TINY

ROOT = Path(__file__).resolve().parent.parent


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # put back after the test
    monkeypatch.setattr(sys, "argv", ["snowmelt", *words])
    cli.main()


def test_commands_are_the_scripts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them; each shows its own help, under the command's name."""
    scripts = {path.name for path in ROOT.glob("*.py")} - {"setup.py"}
    assert {command.script for command in cli.COMMANDS.values()} == scripts
    for name, command in cli.COMMANDS.items():
        with pytest.raises(SystemExit) as end:
            called(monkeypatch, name, "--help")
        assert end.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: snowmelt {name} [options]")
        doc = (ROOT / command.script).read_text().split('"""')[1]
        assert " ".join(doc.split()).split(":")[0] in " ".join(shown.split())


def test_a_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TINY.split(), "--resolution", "8", "--ddpm_num_inference_steps", "1", "--output_dir", "run"]
    called(monkeypatch, "train", *words)
    called(monkeypatch, "sample", "--model", "run", "--num_images", "2", "--num_inference_steps", "1")
    assert (tmp_path / "samples/000001.png").is_file()


def test_mistakes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("paint",), ("doctor", "--now")):
        with pytest.raises(SystemExit) as end:
            called(monkeypatch, *words)
        assert end.value.code == 2
    assert "invalid choice: 'paint'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        called(monkeypatch, "train", "--lerning_rate", "1")
    assert capsys.readouterr().err == "error: unknown flag --lerning_rate; did you mean --learning_rate?\n"
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit):
        called(monkeypatch, "completion", "bash")
    assert "pip install 'snowmelt[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion(shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called(monkeypatch, "completion", shell)
    script = capsys.readouterr().out
    assert "--search_timesteps" in script or "search_timesteps" in script
    assert "train-text2img" in script


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="no bash")
def test_bash_completes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called(monkeypatch, "completion", "bash")
    script = capsys.readouterr().out
    ask = 'COMP_WORDS=(snowmelt sample --search); COMP_CWORD=2; _shtab_snowmelt; echo "${COMPREPLY[@]}"'
    answer = subprocess.run(["/bin/bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)
    assert answer.stdout.split() == ["--search_timesteps"], answer.stderr


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "no_such_module", ("magic", "--magic"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    said = doctor.report()
    assert "pip install 'snowmelt[magic]'  --magic" in said
    assert "Hub        a token is there" in said
    assert "hf_secret" not in said
    assert os.uname().nodename not in said
    for line in ("torch ", "diffusers ", "device ", "precision ", "memory ", "disk here "):
        assert f"\n{line}" in said
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "Hub        offline by HF_HUB_OFFLINE" in doctor.report()


def test_help_is_immediate() -> None:
    code = "import sys, snowmelt.cli; assert not {'torch', 'diffusers', 'numpy', 'accelerate'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_a_wheel_works_from_any_folder(tmp_path: Path) -> None:
    """Built, unpacked where the clone isn't seen, and used: recipes, scripts and the card's template are in it."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    wheels, place = tmp_path / "wheels", tmp_path / "place"
    build = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run([*pip, "wheel", *build], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(place), str(wheel)], check=True)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(place)}

    def run(*words: str) -> str:
        command = [sys.executable, "-P", "-m", "snowmelt.cli", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    short = ["--ddpm_num_inference_steps", "1", "--output_dir", "run"]
    assert f"{place}" in run_python(environment, folder, "import snowmelt; print(snowmelt.__file__)")
    run("train", *TINY.split(), "--resolution", "8", *short)
    run("publish", "--model", "run", "--hub_model_id", "user/digits", "--output_dir", "published")
    assert "user/digits" in (folder / "published/README.md").read_text()
    assert (place / "bin/snowmelt").is_file()


def run_python(environment: dict[str, str], folder: Path, code: str) -> str:
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
