"""Check a built wheel: every file of the package is in it, nothing else is, and it works from another folder."""

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
        "from glora.cli import main\n"
        "from glora.experiments.report.page import report_html\n"
        "from glora.experiments.report.content import ReportContent\n"
        "from glora.experiments.report.cells import ReportTable\n"
        "page = report_html(ReportContent('nothing', None, (), (), ReportTable('', (), ())))\n"
        "assert '</html>' in page and 'sortable' in page, 'report.html cannot be made from the wheel'\n"
        "print(f'glora {glora.__version__}: {len(glora.__all__)} public names import from the wheel')\n"
    )
    subprocess.run([sys.executable, "-c", program, folder], check=True, cwd=folder, env={"PYTHONPATH": folder})
print(f"{wheel.name}: {len(packaged)} files, as in the source tree")
