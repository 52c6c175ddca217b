"""Loads models that `Llm::save` has written with Hugging Face transformers, and compares what they give.

    python3 tests/python/check_saved.py FOLDER

FOLDER holds saved models, each NAME beside NAME.expected.json (tokens, attention mask, chats and their ids, the
adapters' folder if there is one) and NAME.expected.safetensors (the logits that the Rust code gives). Prints the largest
difference of each and exits with 1 where one is too large. The test models::transformers_loads_what_was_saved writes
such a folder, keeps it where SAVED_MODELS says, and runs this if it finds transformers (see requirements.txt):

    cargo test --features torch --test it models::transformers -- --nocapture
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

failed = False
for file in sorted(Path(sys.argv[1]).glob("*.expected.json")):
    name = file.name.removesuffix(".expected.json")
    expected, directory = json.loads(file.read_text()), file.with_name(name)
    wanted = load_file(file.with_suffix(".safetensors"))["logits"]
    if adapters := expected.get("adapters_of"):
        try:
            from peft import PeftModel
        except ImportError:
            print(f"{name}: peft is not installed, its adapters were not loaded")
            continue
        base = AutoModelForCausalLM.from_pretrained(file.with_name(adapters), dtype=torch.float32)
        model = PeftModel.from_pretrained(base, directory).eval()
        tokenizer = None
    else:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
    mask = torch.tensor(expected["attention_mask"]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(torch.tensor(expected["tokens"]), attention_mask=mask, position_ids=positions).logits
    real = mask.bool()
    difference = (logits[real].float() - wanted[real].float()).abs().max().item()
    wrong = 0
    for chat in expected["chats"] if tokenizer else []:
        text = tokenizer.apply_chat_template(chat["messages"], add_generation_prompt=True, tokenize=False)
        wrong += tokenizer.encode(text, add_special_tokens=False) != chat["tokens"]
    for text in expected["texts"] if tokenizer else []:
        wrong += tokenizer.encode(text["text"], add_special_tokens=False) != text["tokens"]
    print(f"{name}: {model.dtype}, largest difference {difference:.1e} of logits up to {wanted.abs().max():.1f}; "
          f"{wrong} texts tokenised otherwise")  # fmt: skip
    failed |= difference > expected["tolerance"] or wrong > 0
sys.exit(failed)
