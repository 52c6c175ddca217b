"""Asks the installed verl whether it takes configurations: `check_verl_config.py < questions`.

A question is a line of JSON: {"name": ..., "overrides": [...], "yaml": PATH or null}. For each one verl's own
configuration tree is composed with the overrides, as verl.trainer.main_ppo does, checked by verl's own validate_config, and made
into verl's own dataclasses; the YAML file has to compose to the very same. An answer is a line of JSON: {"name": ..., "problem": null
or text, "config": {key: value}}, with the values of the keys that the question asks for in "keys".

With --tree it writes the keys of verl's tree with their defaults instead: src/verl/tree.txt.
"""

import contextlib
import importlib.util
import io
import json
import sys
import warnings
from pathlib import Path
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "adapters"))
import stand_ins

warnings.filterwarnings("ignore")
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

ROOT = Path(importlib.util.find_spec("verl").submodule_search_locations[0])
TREE = ROOT / "trainer" / "config"
ENGINES = {"dp": "d", "megatron": "m"}


def composed(folder, name, overrides):
    """The configuration as main_ppo composes it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base=None):
        return compose(name, overrides)


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield prefix + key, value


def write_tree():
    of = {
        letter: dict(leaves(OmegaConf.to_container(composed(TREE, "ppo_trainer", [f"model_engine={engine}"]))))
        for engine, letter in ENGINES.items()
    }
    for key in sorted(set().union(*of.values())):
        engines = "".join(letter for letter in of if key in of[letter])
        print(key, engines, json.dumps(next(of[letter][key] for letter in engines)))


def check(question):
    """What is wrong, or None; and the composed configuration."""
    config = composed(TREE, "ppo_trainer", question["overrides"])
    if question.get("yaml"):
        path = Path(question["yaml"])
        here, there = (OmegaConf.to_container(c) for c in (config, composed(path.parent, path.stem, [])))
        if here != there:
            here, there = dict(leaves(here)), dict(leaves(there))
            keys = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
            return f"the YAML file says otherwise than the command line: {keys}", config
    OmegaConf.resolve(config)
    for model in (config.actor_rollout_ref.model, config.critic.model):
        unknown = set(model) - set(MODEL_FIELDS)
        if unknown:
            return f"HFModelConfig has no {sorted(unknown)}", config
    without_model = config.copy()
    without_model.critic.model = None  # its dataclass opens the model, which is not here
    with contextlib.redirect_stdout(io.StringIO()):
        VALIDATE(without_model, NEED_REFERENCE(config), NEED_CRITIC(config))
        for section in SECTIONS:
            TO_DATACLASS(OmegaConf.select(config, section))
        if NEED_REFERENCE(config):
            TO_DATACLASS(reference(config))
    return None, config


def reference(config):
    """The reference policy's section as its worker hands it on: with the actor's names of the sizes."""
    section = OmegaConf.to_container(config.actor_rollout_ref.ref)
    for name in ("micro_batch_size", "micro_batch_size_per_gpu", "use_dynamic_bsz", "max_token_len_per_gpu"):
        ours = name if name.startswith("use") else f"ppo_{name}"
        section[ours] = section.pop(f"log_prob_{name}", None)
    return OmegaConf.create(section)


def answer(question):
    try:
        problem, config = check(question)
    except Exception as error:  # whatever verl or hydra says is the answer
        problem, config = f"{type(error).__name__}: {error}", OmegaConf.create()
    asked = {key: OmegaConf.select(config, key) for key in question.get("keys", [])}
    asked = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in asked.items()}
    return {"name": question["name"], "problem": problem, "config": asked}


if sys.argv[1:] == ["--tree"]:
    write_tree()
    sys.exit()

for module in ("verl.trainer.ppo.utils", "verl.utils.config"):
    stand_ins.load(module)
from verl.trainer.ppo.utils import need_critic as NEED_CRITIC
from verl.trainer.ppo.utils import need_reference_policy as NEED_REFERENCE
from verl.utils.config import omega_conf_to_dataclass as TO_DATACLASS
from verl.utils.config import validate_config as VALIDATE
from verl.workers.config import HFModelConfig

# validate_config asks vllm, which is not here, whether it takes LoRA's rank.
sys.modules["verl.workers.rollout.vllm_rollout.utils"] = MagicMock()
MODEL_FIELDS = HFModelConfig.__dataclass_fields__
SECTIONS = [
    "actor_rollout_ref.rollout",
    "algorithm.kl_ctrl",
    "algorithm.filter_groups",
]
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
