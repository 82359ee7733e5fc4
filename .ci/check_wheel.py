"""Check a built wheel: every file of the package is in it, nothing else is, and it works from another folder."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

wheel, source = Path(sys.argv[1]).resolve(), Path(__file__).resolve().parent.parent / "src"
names = set(zipfile.ZipFile(wheel).namelist())
packaged = {n for n in names if n.startswith("glora/")}
SUFFIXES = {".py", ".jinja", ".css", ".js"}  # the modules, and what report.html is made of
expected = {p.relative_to(source).as_posix() for p in (source / "glora").rglob("*") if p.suffix in SUFFIXES} | {
    "glora/py.typed"
}
if packaged != expected:
    sys.exit(
        f"missing from the wheel: {sorted(expected - packaged)}; should not be in it: {sorted(packaged - expected)}"
    )
stray = [n for n in names - packaged if ".dist-info/" not in n]
if stray:
    sys.exit(f"outside the package: {stray}")
if not any(n.endswith("licenses/LICENSE") for n in names):
    sys.exit("the wheel has no LICENSE")

with tempfile.TemporaryDirectory() as folder:
    zipfile.ZipFile(wheel).extractall(folder)
    program = (
        "import sys, pathlib\n"
        "import glora\n"
        "assert pathlib.Path(glora.__file__).is_relative_to(sys.argv[1]), glora.__file__\n"
        "assert glora.allocate_ranks({'a': 3.0, 'b': 1.0}, 8) == {'a': 6, 'b': 2}\n"
        "[getattr(glora, name) for name in glora.__all__]\n"
        "print(f'glora {glora.__version__}: {len(glora.__all__)} public names import from the wheel')\n"
    )
    environment = {"PYTHONPATH": folder, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program, folder], check=True, cwd=folder, env=environment)
    # The command line as a user calls it: its templates, styles and scripts must be found in the wheel.
    shutil.copytree(source.parent / "benchmarks" / "rte", records := Path(folder, "rte"))
    (records / "report.html").unlink(missing_ok=True)
    command = [sys.executable, "-m", "glora", "report", "rte"]
    subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    page = (records / "report.html").read_text()
    if "</html>" not in page or "sortable" not in page:
        sys.exit("report.html, as made from the wheel, is not whole")
print(f"{wheel.name}: {len(packaged)} files, as in the source tree")
