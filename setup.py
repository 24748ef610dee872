"""What pyproject.toml can't say: a wheel also holds the scripts, the recipes and the model card's template."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("*.py", "recipes/*.yaml", "model_cards/template.md", "constraints.txt")


class WithScripts(build_py):
    """Copies them to where `snowmelt.shipped` looks first; an editable install finds them in the clone."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        root = Path(__file__).parent
        for pattern in SHIPPED:
            for path in root.glob(pattern):
                target = Path(self.build_lib) / "snowmelt" / "shipped" / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": WithScripts})
