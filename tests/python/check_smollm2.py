"""Records what Hugging Face transformers says of the language model, for tests/it/llm.rs to compare with.

    python3 -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.11.0 transformers==5.23.0 gguf==0.19.0 accelerate numpy
    /tmp/hf/bin/python tests/python/check_smollm2.py [--gsm8k DIR]

writes fixtures/llm/smollm2.json (from models/SmolLM2-135M-Instruct.Q4_1.gguf, which ./setup fetches), the tiny
Hugging Face directories fixtures/llm/tiny-* (Llama, Qwen2, Qwen3; random weights), the Qwens once more as GGUF files,
and what all of them must give, fixtures/llm/tiny.json; with --tiny only the tiny ones.
DIR holds GSM8K's train.jsonl and test.jsonl; without it their token counts are kept as they were recorded.

    LLM_DUMP=/tmp/rust.safetensors cargo test --features torch --test it llm::smollm2_agrees
    /tmp/hf/bin/python tests/python/check_smollm2.py --compare /tmp/rust.safetensors

prints the largest difference over all logits at all positions instead of writing anything.

The weights are dequantised by the `gguf` package and put into Hugging Face's order here: nothing is shared with the
Rust reader. The tokenizer is the one that transformers makes of the GGUF file, with the step put back that it
forgets: the pre-tokenizer "smollm" splits every digit off before the byte-level one.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

ROOT = Path(__file__).resolve().parents[2]
GGUF = ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = ROOT / "fixtures/llm"

QUESTION = "A baker sells 12 boxes with 6 rolls each and 30 single rolls. How many rolls does she sell?"
CONVERSATIONS = [
    [{"role": "user", "content": QUESTION}],
    [
        {"role": "system", "content": "Answer with a number.\n"},
        {"role": "user", "content": "What is 17 + 25?"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "  And 2 times that? "},
    ],
]
PLAIN = "The three states of matter are"
STRINGS = [
    "", " ", "a", "Hello world", " Hello  world ", "1234567890", "3.14159 and -2,718", "$1,000,000.00 or 50%",
    "x=12+34*56/78", "007 1st 2nd 3rd", "\n\n\n", "a\n\nb\n", "\t\tif x:\n\t\t    return 1", "   leading", "trailing   ",
    "don't can't we'll I'd you've they're it's I'm", "DON'T CAN'T WE'LL", "can’t won’t — “quoted”", "naïve café Ångström",
    "日本語のテキスト 123", "Привет, мир 2024", "مرحبا ١٢٣", "½ ² ③ Ⅳ 四", "😀👩‍👩‍👧 e\u0301", "\u00a0nbsp\u2003em",
    "a\r\nb\rc", "<<16-3-4=9>>9 #### 18", "<|im_start|>user\nhi<|im_end|>\n", "x<|endoftext|>y <|im_end|>",
    "<repo_name>12<reponame><empty_output>", "<|im_start", "a_b__c___d", "https://a.b/c?d=1&e=22", "ＦＵＬＬ１２３", "\u0000\u0001\u007f\u0080",
]  # fmt: skip


def smollm2():
    """The model and its tokenizer, in transformers."""
    reader = gguf.GGUFReader(GGUF)
    field = lambda name: reader.get_field(name).contents()
    heads, groups = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=len(field("tokenizer.ggml.tokens")),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings=True,
        hidden_act="silu",
    )
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    state = {}
    for tensor in reader.tensors:
        value = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).float()
        match tensor.name.split("."):
            case ["token_embd", "weight"]:
                state["model.embed_tokens.weight"] = state["lm_head.weight"] = value
            case ["output_norm", "weight"]:
                state["model.norm.weight"] = value
            case ["blk", layer, name, "weight"]:
                if name in ("attn_q", "attn_k"):  # pairs side by side -> the two halves of a head
                    rows = torch.arange(len(value)).reshape(heads if name == "attn_q" else groups, -1, 2)
                    value = value[torch.cat([rows[:, :, 0], rows[:, :, 1]], 1).flatten()]
                state[f"model.layers.{layer}.{names[name]}.weight"] = value
    model = AutoModelForCausalLM.from_config(config).float().eval()
    model.load_state_dict(state, strict=True)

    tokenizer = AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])
    return model, tokenizer


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def chat(tokenizer, messages):
    return encode(tokenizer, tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def prompts(tokenizer):
    return [encode(tokenizer, PLAIN)] + [chat(tokenizer, messages) for messages in CONVERSATIONS]


def greedy(model, ids, count):
    """Greedy tokens, each from a whole pass, and the smallest lead of a winner over the runner-up."""
    ids, lead = list(ids), float("inf")
    for _ in range(count):
        best = model(torch.tensor([ids])).logits[0, -1].topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    return ids[-count:], lead


def fnv1a(ids):
    digest = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return f"{digest:016x}"


def gsm8k(tokenizer, file):
    """Count and hash of the tokens of all questions and answers, in the file's order."""
    ids = []
    for line in file.read_text().splitlines():
        problem = json.loads(line)
        for text in (problem["question"], problem["answer"]):
            ids += encode(tokenizer, text)
    return {"tokens": len(ids), "fnv1a": fnv1a(ids)}


def record_smollm2(gsm8k_dir):
    model, tokenizer = smollm2()
    file = OUT / "smollm2.json"
    record = {"prompts": [], "strings": [], "chat": []}
    for ids in prompts(tokenizer):
        logits = model(torch.tensor([ids])).logits[0, -1]
        top = logits.topk(10)
        tokens, lead = greedy(model, ids, 48)
        print(f"{len(ids)} tokens, smallest greedy lead {lead:.4f}: {tokenizer.decode(tokens)!r}")
        record["prompts"].append({
            "tokens": ids,
            "every_32nd_logit": [round(x, 5) for x in logits[::32].tolist()],
            "top_tokens": top.indices.tolist(),
            "top_logits": [round(x, 5) for x in top.values.tolist()],
            "greedy": tokens,
        })  # fmt: skip
    record["strings"] = [{"text": text, "tokens": encode(tokenizer, text)} for text in STRINGS]
    for messages in CONVERSATIONS:
        record["chat"].append({"messages": messages, "tokens": chat(tokenizer, messages)})
    if gsm8k_dir:
        record["gsm8k"] = {name: gsm8k(tokenizer, gsm8k_dir / name) for name in ("train.jsonl", "test.jsonl")}
    else:
        record["gsm8k"] = json.loads(file.read_text())["gsm8k"]
    write(file, record)


def byte_tokenizer():
    """All bytes, a few merges and the special tokens: a tokenizer in the manner of Llama's, of 264 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r")]
    tokens = alphabet + ["".join(pair) for pair in merges]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    tokenizer.chat_template = (
        "{{ bos_token }}\n"
        "{% for message in messages %}\n"
        "    {%- if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('role') }}{% endif %}\n"
        "    {% if not loop.first %}\n"
        "{{ eos_token }}\n"
        "    {% endif %}\n"
        "{{ message['role'].upper() }}: {{ message['content'].strip() }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}\nASSISTANT:{% endif %}\n"
    )
    return tokenizer


QWEN_MERGES = [
    ("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"),
    # Each of these may or may not be reached, as the text is split beforehand.
    ("1", "2"), ("'", "s"), ("Ċ", "Ċ"), ("Ġ", "Ċ"), ("Ġ", "Ġ"), ("!", "Ċ"), (".", "a"), ("Ġ", "1"), ("e", "Ċ"), ("Ã", "©"),
]  # fmt: skip


def qwen_tokenizer():
    """Qwen's own splitting over a vocabulary of all bytes, a few merges and special tokens: 275 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + ["".join(pair) for pair in QWEN_MERGES]
    tokenizer = Qwen2Tokenizer({token: i for i, token in enumerate(tokens)}, QWEN_MERGES, eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<tool_call>", special=False)])
    tokenizer.chat_template = (
        "{%- if tools %}{{- raise_exception('no tools') }}{%- endif %}\n"
        "{%- set ns = namespace(last=-1) %}\n"
        "{%- for message in messages[::-1] %}\n"
        "    {%- if ns.last < 0 and message.role == 'user' and message.content is string %}\n"
        "        {%- set ns.last = messages|length - 1 - loop.index0 %}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- for message in messages %}\n"
        "    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\n"
        "    {{- '<|im_start|>' + message.role + ('*' if loop.index0 == ns.last else '') + '\\n' + content + '<|im_end|>\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|im_start|>assistant\\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>' }}{%- endif %}\n"
        "{%- endif %}"
    )
    return tokenizer


def record_tiny():
    byte, qwen = byte_tokenizer(), qwen_tokenizer()
    shared = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, rms_norm_eps=1e-5, initializer_range=0.3,
    )  # fmt: skip
    llama = dict(shared, vocab_size=264, bos_token_id=261, eos_token_id=[262, 263])
    # As published, with more embeddings than tokens.
    qwens = dict(shared, vocab_size=280, bos_token_id=None, eos_token_id=272, pad_token_id=271)
    plain = dict(rope_type="default", rope_theta=10000.0)
    llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    kinds = {
        "tiny-llama": (byte, LlamaConfig(**llama, rope_parameters=plain, tie_word_embeddings=True), {}),
        # Everything else at once: its own head, wide heads, llama3 rotary scaling, bf16, two shards.
        "tiny-llama3": (
            byte,
            LlamaConfig(**llama, rope_parameters=dict(llama3, rope_theta=500.0), tie_word_embeddings=False, head_dim=8),
            dict(max_shard_size="16KB"),
        ),
        "tiny-llama-bias": (
            byte,
            LlamaConfig(**llama, rope_parameters=plain, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
            {},
        ),
        "tiny-qwen2": (qwen, Qwen2Config(**qwens, rope_parameters=dict(plain, rope_theta=1e6), tie_word_embeddings=False), {}),
        "tiny-qwen3": (qwen, Qwen3Config(**qwens, rope_parameters=dict(plain, rope_theta=1e6), tie_word_embeddings=True, head_dim=8), {}),
    }
    record = {}
    for name, (tokenizer, config, saving) in kinds.items():
        torch.manual_seed(0)
        directory = OUT / name
        shutil.rmtree(directory, ignore_errors=True)
        model = AutoModelForCausalLM.from_config(config)
        if name == "tiny-llama3":
            model = model.bfloat16()
        if name not in ("tiny-llama", "tiny-llama3"):
            for parameter in model.parameters():  # biases start at 0 and norms at 1, where a mistake does not show
                if parameter.dim() == 1:
                    parameter += torch.randn_like(parameter) * 0.3
        model.save_pretrained(directory, **saving)
        tokenizer.save_pretrained(directory)

        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        rows = torch.randint(0, 264, (3, 40))
        mask = torch.ones_like(rows)
        mask[1, :7] = 0
        mask[2, :39] = 0
        run = lambda model: model(rows, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]
        logits, messages = run(model), CONVERSATIONS[1]
        record[name] = {
            "tokens": rows.tolist(),
            "attention_mask": mask.bool().tolist(),
            "last_logits": [[round(x, 6) for x in row] for row in logits.tolist()],
            "chat": {"messages": messages, "tokens": chat(tokenizer, messages)},
        }
        if tokenizer is qwen:
            record[name]["strings"] = [{"text": t, "tokens": encode(tokenizer, t)} for t in STRINGS + ["a<tool_call>1"]]
            write_gguf(OUT / f"{name}.gguf", model, tokenizer)
            # With the config given: transformers overlooks the width of a head in a GGUF file.
            again = AutoModelForCausalLM.from_pretrained(OUT, gguf_file=f"{name}.gguf", config=config, dtype=torch.float32)
            assert torch.allclose(run(again), logits, atol=1e-5), name
    write(OUT / "tiny.json", record)


def write_gguf(file, model, tokenizer):
    """A Qwen as llama.cpp converts it: names of its own, the rows of queries and keys as they are."""
    config, kind = model.config, model.config.model_type
    out = gguf.GGUFWriter(file, kind)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    if kind == "qwen3":
        out.add_key_length(config.head_dim)
        out.add_value_length(config.head_dim)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])

    texts = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    types = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    ids = range(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list([texts.get(i, f"[PAD{i}]") for i in ids])
    out.add_token_types([
        types[added[i].special] if i in added else gguf.TokenType.NORMAL if i in texts else gguf.TokenType.UNUSED for i in ids
    ])  # fmt: skip
    out.add_token_merges([" ".join(pair) for pair in QWEN_MERGES])
    out.add_eos_token_id(config.eos_token_id)
    out.add_pad_token_id(config.pad_token_id)
    out.add_chat_template(tokenizer.chat_template)

    names = gguf.get_tensor_name_map({"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[kind], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if not (name == "lm_head.weight" and config.tie_word_embeddings):
            out.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def compare(dump):
    """All logits at all positions of the prompts against those that the Rust test has dumped."""
    model, tokenizer = smollm2()
    theirs = load_file(dump)
    for index, ids in enumerate(prompts(tokenizer)):
        ours = model(torch.tensor([ids])).logits[0]
        difference = (ours - theirs[f"logits.{index}"]).abs().max().item()
        print(f"prompt {index}: {ours.shape[0]} positions x {ours.shape[1]} logits, largest difference {difference:.2e}")


def write(file, record):
    """Indented JSON, but each list of numbers or booleans on one line."""
    lines = json.dumps(record, indent=1)
    lines = re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", lambda m: "[" + " ".join(m.group(1).split()) + "]", lines)
    lines = re.sub(r"\[\s+((?:(?:true|false),?\s+)+)\]", lambda m: "[" + " ".join(m.group(1).split()) + "]", lines)
    file.write_text(lines + "\n")
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if arguments.compare:
            compare(arguments.compare)
        else:
            record_tiny()
            if not arguments.tiny:
                record_smollm2(arguments.gsm8k)
