"""Imports a package without the parts of it that nobody calls here: what is not installed (ray, vllm, flash_attn ...) is
replaced by an empty stand-in. Standard library only."""

import importlib
import importlib.machinery
import sys
from unittest.mock import MagicMock


class StandIns:
    def __init__(self):
        self.roots = set()

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.roots:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__name__, module.__path__, module.__spec__, module.__version__ = spec.name, [], spec, "99"
        return module

    def exec_module(self, module):
        pass


STAND_INS = StandIns()
sys.meta_path.append(STAND_INS)


def load(name):
    """The module; imported anew, with one more stand-in, for as long as something is missing."""
    own = name.split(".")[0]
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name.split(".")[0]
            if missing in STAND_INS.roots or missing == own:
                raise
            STAND_INS.roots.add(missing)
            for loaded in [key for key in sys.modules if key.split(".")[0] == own]:
                del sys.modules[loaded]
