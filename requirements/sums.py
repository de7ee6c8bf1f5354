"""Writes requirements/sums/: the checksums that `make setup` holds what it downloads to (`make lock` runs this last).

A line for each pin of a list, with the SHA-256 of every wheel that may be installed for it: of Python 3.11 to 3.13, and
of the systems that the list is for. They are what the index states; uv fetches them. PyTorch's CPU builds are not on
PyPI: their pins have no checksum here (docs/security.md).
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
SUMS = HERE / "sums"
HEADER = "# Checksums of the wheels of {name}.txt, for `pip install --require-hashes`. Regenerate with: make lock\n"
TORCH = "torch=="
PYTHON = r"(?:py\d+(?:\.py\d+)*|cp3\d+)"
LINUX = r"manylinux\w*_x86_64"
OTHERS = r"manylinux\w*_aarch64|macosx_\d+_\d+_(?:arm64|universal2)"


def wheels(pins: list[str]) -> dict[str, dict[str, str]]:
    """{pin, without its marker: {wheel: SHA-256}}, as the index has them."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "given.in"), Path(folder, "pylock.toml")
        given.write_text("\n".join(pins) + "\n")
        command = ["uv", "pip", "compile", str(given), "--universal", "--no-deps", "--python-version=3.11", "--quiet"]
        subprocess.run([*command, "--only-binary=:all:", "--format=pylock.toml", "-o", str(found)], check=True)
        packages = tomllib.loads(found.read_text())["packages"]
    return {
        f"{each['name']}=={each['version']}": {
            wheel.get("name") or wheel["url"].rpartition("/")[2]: wheel["hashes"]["sha256"] for wheel in each["wheels"]
        }
        for each in packages
    }


def fits(wheel: str, anywhere: bool) -> bool:
    """Whether a wheel may be installed: "anywhere" is also Linux on Arm, and macOS."""
    systems = f"{LINUX}|{OTHERS}" if anywhere else LINUX
    python, abi, system = wheel.removesuffix(".whl").split("-")[-3:]
    mine = re.fullmatch(PYTHON, python) and (python.startswith("py") or python in "cp311 cp312 cp313" or abi == "abi3")
    return bool(mine) and any(re.fullmatch(f"any|{systems}", each) for each in system.split("."))


def write(name: str) -> None:
    """Write requirements/sums/<name>.txt. Raises ValueError for a pin without a wheel."""
    head, *lines = (HERE / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if not (line.startswith(TORCH) and "+cpu" in "".join(lines))]
    found, text = wheels(pins), HEADER.format(name=name)
    for pin in pins:
        bare = pin.partition(" ; ")[0]
        sums = sorted({value for wheel, value in found[bare].items() if fits(wheel, "arm64" in head)})
        if not sums:
            raise ValueError(f"{pin}: the index states no checksum of a wheel that fits")
        text += " \\\n".join([pin, *(f"    --hash=sha256:{value}" for value in sums)]) + "\n"
    SUMS.mkdir(exist_ok=True)
    (SUMS / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    for each in sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.txt")):
        write(each)
