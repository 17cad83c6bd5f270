"""Pre-commit hook: takes a person's own films out of notebooks, the paths and every output made from them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

OWN = re.compile(r"""^(ap_film|lateral_film|landmark_file)(.*?=\s*)(?!""|'')(["']).*?\3""", re.MULTILINE)


def strip(path: Path) -> bool:
    """Whether the notebook had films of someone's own, which are gone now."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if not any(OWN.search("".join(cell["source"])) for cell in code):
        return False
    for cell in code:
        cell["source"] = OWN.sub(r'\1\2""', "".join(cell["source"])).splitlines(keepends=True)
        cell["outputs"], cell["execution_count"] = [], None
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


if __name__ == "__main__":
    found = [name for name in sys.argv[1:] if strip(Path(name))]
    for name in found:
        print(f"{name} named own films: paths and outputs are removed; run it again without films, and add it.")
    sys.exit(bool(found))
