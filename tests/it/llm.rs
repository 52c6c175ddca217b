//! The language model against what Hugging Face transformers gave (tests/python/check_smollm2.py recorded it),
//! and against itself: cache or none, batch or single rows, padding or none.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard};

use grpo_oracle::llm::generate::generate_uncached;
use grpo_oracle::llm::{Generation, Llm, Message, Model, Role, Sampling, Tokenizer, generate};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

// ---- against transformers ----

#[test]
fn smollm2_agrees_with_transformers_on_logits_and_greedy_tokens() {
    let (llm, fixture) = (smollm2(), SmolLm2::read());
    let mut dump = Vec::new();
    for (index, prompt) in fixture.prompts.iter().enumerate() {
        let logits = tch::no_grad(|| {
            llm.model.head(&llm.model.hidden(&rows(&[&prompt.tokens]), &full(1, prompt.tokens.len())))
        });
        let last = logits.select(1, -1).squeeze_dim(0);
        let sampled = floats(&last.slice(0, 0, None, 32));
        let (top, top_tokens) = last.topk(10, -1, true, true);
        let difference =
            largest(&sampled, &prompt.every_32nd_logit).max(largest(&floats(&top), &prompt.top_logits));
        println!("prompt {index}: largest difference of recorded logits {difference:.1e}");
        assert!(difference < 1e-3, "prompt {index}: {difference}");
        assert_eq!(integers(&top_tokens), prompt.top_tokens, "prompt {index}");
        dump.push((format!("logits.{index}"), logits.squeeze_dim(0).contiguous()));
    }
    let prompts: Vec<_> = fixture.prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
    let generation = run(&llm, &prompts, &[], &greedy(48));
    for (index, (tokens, prompt)) in generation.tokens.iter().zip(&fixture.prompts).enumerate() {
        assert_eq!(tokens, &prompt.greedy, "prompt {index}");
    }
    if let Some(path) = std::env::var_os("LLM_DUMP") {
        Tensor::write_safetensors(&dump, path).unwrap();
    }
}

#[test]
fn smollm2_tokenizes_like_transformers() {
    let (llm, fixture) = (smollm2(), SmolLm2::read());
    let tokenizer = &llm.tokenizer;
    for case in &fixture.strings {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.tokens, "{:?}", case.text);
        if !case.text.contains("<|") && !case.text.contains("<repo") {
            assert_eq!(tokenizer.decode(&case.tokens).unwrap(), case.text);
        }
    }
    assert_eq!(tokenizer.decode(&tokenizer.encode("<|im_start|>a 12<|im_end|>").unwrap()).unwrap(), "a 12");
    for case in &fixture.chat {
        assert_eq!(tokenizer.chat(&case.messages()).unwrap(), case.tokens);
    }
    assert_eq!((tokenizer.stop_tokens(), tokenizer.pad_token()), (&[0, 2][..], 2));
}

#[test]
fn smollm2_tokenizes_all_of_gsm8k_like_transformers() {
    let Some(directory) = std::env::var_os("GSM8K_DIR") else {
        println!("GSM8K_DIR is not set: its questions and answers were not tokenised");
        return;
    };
    let (llm, fixture) = (smollm2(), SmolLm2::read());
    for (file, want) in &fixture.gsm8k {
        let text = std::fs::read_to_string(Path::new(&directory).join(file)).unwrap();
        let mut tokens = Vec::new();
        for line in text.lines() {
            let problem: serde_json::Value = serde_json::from_str(line).unwrap();
            for key in ["question", "answer"] {
                tokens.extend(llm.tokenizer.encode(problem[key].as_str().unwrap()).unwrap());
            }
        }
        println!("{file}: {} problems, {} tokens", text.lines().count(), tokens.len());
        assert_eq!(
            (tokens.len(), format!("{:016x}", fnv1a(&tokens))),
            (want.tokens, want.fnv1a.clone()),
            "{file}"
        );
    }
}

#[test]
fn hugging_face_directories_agree_with_transformers() {
    let fixtures: std::collections::BTreeMap<String, Tiny> = read("fixtures/llm/tiny.json");
    assert_eq!(fixtures.len(), TINY.len());
    for (name, tiny) in fixtures {
        let gguf = Path::new("fixtures/llm").join(format!("{name}.gguf"));
        if name.contains("qwen") {
            agrees(&gguf, &name, &tiny);
        }
        let llm = agrees(&Path::new("fixtures/llm").join(&name), &name, &tiny);
        let names: Vec<_> = llm.model.parameters().into_iter().map(|(name, _)| name).collect();
        let own_head = ["tiny-llama3", "tiny-qwen2"].contains(&name.as_str());
        assert_eq!(names.contains(&"lm_head.weight".to_owned()), own_head);
    }

    fn agrees(path: &Path, name: &str, tiny: &Tiny) -> Llm {
        let llm = load(path);
        let tokens = rows(&tiny.tokens.iter().collect::<Vec<_>>());
        let mask = Tensor::from_slice2(&tiny.attention_mask);
        let last = llm.model.head(&llm.model.hidden(&tokens, &mask)).select(1, -1);
        let difference = largest(&floats(&last.flatten(0, -1)), &tiny.last_logits.concat());
        println!("{name}: largest difference {difference:.1e}");
        assert!(difference < 2e-5, "{name}: {difference}");

        assert_eq!(llm.tokenizer.chat(&tiny.chat.messages()).unwrap(), tiny.chat.tokens, "{name}");
        for case in &tiny.strings {
            assert_eq!(llm.tokenizer.encode(&case.text).unwrap(), case.tokens, "{name}: {:?}", case.text);
        }
        assert_eq!(tiny.strings.is_empty(), !name.contains("qwen"));
        let stop = if name.contains("qwen") { [271, 272] } else { [262, 263] };
        assert_eq!(llm.tokenizer.stop_tokens(), stop, "{name}");
        llm
    }
}

// ---- against itself ----

#[test]
fn cache_and_no_cache_sample_the_same_tokens() {
    let llm = smollm2();
    let prompts: Vec<_> =
        ["The number 7 is", "Once upon a time there was a"].map(|t| llm.tokenizer.encode(t).unwrap()).into();
    let stop = llm.tokenizer.stop_tokens();
    for sampling in [
        greedy(10),
        Sampling { temperature: 1., top_p: 1., top_k: None, max_new_tokens: 10, seed: 5, fused: true },
    ] {
        let (with, without) = both(&llm.model, &prompts, stop, &sampling);
        assert_eq!(with, without);
    }
}

#[test]
fn cache_and_no_cache_sample_the_same_tokens_while_rows_come_to_their_ends() {
    for name in TINY {
        let llm = load(Path::new("fixtures/llm").join(name));
        // Ragged prompts, some of them equal; any token below 20 ends a row, so rows leave all the time.
        let prompts: Vec<Vec<i64>> =
            (0..24).map(|row| (0..=row % 7).map(|i| 40 + 11 * i + row % 7).collect()).collect();
        let stop: Vec<i64> = (0..20).collect();
        for top_p in [1., 0.8] {
            let sampling =
                Sampling { temperature: 1.2, top_p, top_k: None, max_new_tokens: 50, seed: 3, fused: true };
            let (with, without) = both(&llm.model, &prompts, &stop, &sampling);
            assert_eq!(with, without, "{name}");
            let lengths: std::collections::BTreeSet<_> = with.tokens.iter().map(Vec::len).collect();
            assert!(lengths.len() > 8 && with.stopped.contains(&true), "{name}: {lengths:?}");
            for (tokens, stopped) in with.tokens.iter().zip(with.stopped) {
                assert_eq!(stopped, stop.contains(tokens.last().unwrap()));
                assert!(tokens.len() == 50 || stopped);
                assert!(!tokens[..tokens.len() - 1].iter().any(|token| stop.contains(token)));
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_other_rows() {
    let llm = load("fixtures/llm/tiny-llama");
    let sampling =
        Sampling { temperature: 1., top_p: 0.9, top_k: None, max_new_tokens: 30, seed: 11, fused: true };
    let (a, b, c) = (vec![1, 2, 3], vec![4; 17], vec![5]);
    let one = run(&llm, &[a.clone(), b.clone(), a.clone()], &[7], &sampling);
    let other = run(&llm, &[a.clone(), c, a.clone(), b], &[7], &sampling);
    assert_eq!((&one.tokens[0], &one.tokens[2]), (&other.tokens[0], &other.tokens[2]));
    assert_ne!(one.tokens[0], one.tokens[2], "equal prompts in different rows draw from different streams");
    assert_eq!(
        one,
        run(&llm, &[a.clone(), b_again(), a.clone()], &[7], &sampling),
        "a seed fixes the tokens"
    );
    let reseeded = Sampling { seed: 12, ..sampling };
    assert_ne!(one, run(&llm, &[a.clone(), b_again(), a], &[7], &reseeded), "another seed gives others");

    fn b_again() -> Vec<i64> {
        vec![4; 17]
    }
}

#[test]
fn a_batch_and_its_rows_one_by_one_have_the_same_log_probabilities() {
    batch_and_rows_agree(&smollm2());
    for name in TINY {
        batch_and_rows_agree(&load(Path::new("fixtures/llm").join(name)));
    }
}

fn batch_and_rows_agree(llm: &Llm) {
    let texts = ["2 + 2 = 4", "A train leaves at 9:45 and arrives at 11:20, so it takes", "Yes"];
    let texts: Vec<_> = texts.iter().map(|text| llm.tokenizer.encode(text).unwrap()).collect();
    let width = texts.iter().map(Vec::len).max().unwrap() + 2;
    // Padding on both sides; what stands in it is no token at all.
    let left = [2, 1, 6];
    let padded: Vec<Vec<i64>> =
        texts.iter().zip(left).map(|(text, left)| pad(text, left, width, -100)).collect();
    let mask: Vec<Vec<bool>> =
        padded.iter().map(|row| row.iter().map(|&token| token >= 0).collect()).collect();
    let logp = |tokens: &Tensor, mask: &Tensor| {
        tch::no_grad(|| llm.model.head(&llm.model.hidden(tokens, mask)).log_softmax(-1, Kind::Float))
    };
    let batch = logp(&rows(&padded.iter().collect::<Vec<_>>()), &Tensor::from_slice2(&mask));
    for (row, text) in texts.iter().enumerate() {
        let alone = logp(&rows(&[text]), &full(1, text.len())).squeeze_dim(0);
        let together = batch.get(row as i64).narrow(0, left[row] as i64, text.len() as i64);
        let difference = (alone - together).abs().max().double_value(&[]);
        println!("row {row}: largest difference {difference:.1e}");
        assert!(difference < 1e-4, "row {row}: {difference}");
    }
}

#[test]
fn responses_behind_one_prompt_are_as_each_on_its_own() {
    for name in TINY {
        let llm = load(Path::new("fixtures/llm").join(name));
        let (prompt, responses) = ([17, 200, 31], [vec![5, 90, 8], vec![7, 41]]);
        let logits = |hidden: &Tensor| llm.model.head(hidden).squeeze_dim(0);
        let packed: Vec<i64> = prompt.iter().chain(responses.iter().flatten()).copied().collect();
        let positions = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 5, 3, 4]).unsqueeze(0);
        // The prompt, and then the own response alone.
        let sees = |i: usize, j: usize| j <= i && (j < 3 || (i < 6) == (j < 6));
        let visible: Vec<Vec<bool>> = (0..8).map(|i| (0..8).map(|j| sees(i, j)).collect()).collect();
        let visible = Tensor::from_slice2(&visible).unsqueeze(0);
        let together = logits(&llm.model.hidden_at(&rows(&[&packed]), &positions, &visible));
        for (response, places) in responses.iter().zip([[0, 1, 2, 3, 4, 5].as_slice(), &[0, 1, 2, 6, 7]]) {
            let text = [&prompt, response.as_slice()].concat();
            let alone = logits(&llm.model.hidden(&rows(&[&text]), &full(1, text.len())));
            let places = Tensor::from_slice(places).to_kind(Kind::Int64);
            let difference = (alone - together.index_select(0, &places)).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "{name}: {difference}");
        }
    }
}

#[test]
fn padding_reaches_no_gradient() {
    let llm = load("fixtures/llm/tiny-llama");
    let text = [17, 200, 31, 5, 90];
    // The loss of the real tokens only, as a trainer takes it.
    let gradients = |tokens: &[Vec<i64>]| {
        let mask: Vec<Vec<bool>> =
            tokens.iter().map(|row| row.iter().map(|&token| token >= 0).collect()).collect();
        let mask = Tensor::from_slice2(&mask);
        let logits = llm.model.head(&llm.model.hidden(&rows(&tokens.iter().collect::<Vec<_>>()), &mask));
        let loss = logits.log_softmax(-1, Kind::Float).select(-1, 3).masked_select(&mask).sum(Kind::Float);
        let parameters = llm.model.parameters();
        for (_, parameter) in &parameters {
            parameter.shallow_clone().zero_grad();
        }
        loss.backward();
        parameters.into_iter().map(|(name, parameter)| (name, parameter.grad().copy())).collect::<Vec<_>>()
    };
    llm.model.set_trainable(true);
    let plain = gradients(&[text.to_vec()]);
    // Padding on both sides, and a row of nothing else.
    let padded = gradients(&[pad(&text, 3, 12, -1), vec![-1; 12]]);
    assert_eq!(plain.len(), llm.model.parameters().len());
    for ((name, plain), (_, padded)) in plain.iter().zip(&padded) {
        let scale = plain.abs().max().double_value(&[]);
        assert!(scale > 0., "{name} gets no gradient");
        let difference = (plain - padded).abs().max().double_value(&[]);
        assert!(difference < 1e-5 * scale.max(1.), "{name}: {difference} of {scale}");
    }
}

#[test]
fn a_frozen_copy_keeps_still() {
    let llm = load("fixtures/llm/tiny-llama");
    llm.model.set_trainable(true);
    let copy = llm.model.frozen_copy();
    assert!(llm.model.parameters().iter().all(|(_, p)| p.requires_grad() && p.is_leaf()));
    assert!(copy.parameters().iter().all(|(_, p)| !p.requires_grad()));
    let logits = || copy.head(&copy.hidden(&rows(&[&vec![1, 2, 3]]), &full(1, 3)));
    let before = logits();
    for (_, parameter) in llm.model.parameters() {
        let _ = tch::no_grad(|| parameter.shallow_clone().fill_(1.));
    }
    assert_eq!(before, logits());
    llm.model.set_trainable(false);
    assert!(llm.model.parameters().iter().all(|(_, p)| !p.requires_grad()));
}

#[test]
fn bf16_stays_near_f32() {
    let f32 = load("fixtures/llm/tiny-llama3");
    let bf16 = Llm::load(Path::new("fixtures/llm/tiny-llama3"), Device::Cpu, Kind::BFloat16).unwrap();
    let tokens: Vec<i64> = (0..60).map(|i| i * 37 % 264).collect();
    let logp = |model: &Model| {
        let logits = model.head(&model.hidden(&rows(&[&tokens]), &full(1, tokens.len())));
        logits.log_softmax(-1, Kind::Float)
    };
    assert_eq!(bf16.model.kind(), Kind::BFloat16);
    let difference = (logp(&f32.model) - logp(&bf16.model)).abs().max().double_value(&[]);
    assert!(difference < 0.3, "{difference}");
    let generation = run(&bf16, &[tokens.clone(), tokens[..5].to_vec()], &[], &greedy(5));
    assert!(generation.tokens.iter().all(|tokens| tokens.len() == 5));
}

// ---- errors ----

#[test]
fn a_path_without_a_model_is_one_sentence() {
    let missing = Path::new("models/none.gguf");
    refused(
        missing,
        "models/none.gguf: there is no such file or directory; ./setup fetches the demo model into models/",
    );
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), "config.json: cannot be read (No such file or directory (os error 2))");
    refused(Path::new("Cargo.toml"), "Cargo.toml: is not a GGUF file");
}

#[test]
fn a_truncated_gguf_is_one_sentence() {
    let whole = std::fs::read(MODEL).expect("run ./setup: it fetches the demo model");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    for length in [0, 3, 7, 20, 200, 3000, 700_000, 1_785_663, 1_785_664, 20_000_000] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = refusal(&path);
        let expected = if length < 4 { "is not a GGUF file" } else { "truncated" };
        assert!(error.contains("model.gguf: ") && error.contains(expected), "{length}: {error}");
        assert!(!error.contains('\n') && error.len() < 300, "{length}: {error}");
    }
    // A byte of the architecture's name and one of a tensor's name.
    for (find, replace, expected) in [
        (
            "llama",
            "lxama",
            "is a model of the architecture `lxama`; Llama (SmolLM2), Qwen2, Qwen2.5 and Qwen3 are supported",
        ),
        (
            "blk.7.ffn_up",
            "blk.7.ffn_xx",
            "has no tensor `model.layers.7.mlp.up_proj.weight`; it is incomplete",
        ),
        ("smollm2", "qwen222", ""),
    ] {
        let mut bytes = whole.clone();
        let at = bytes.windows(find.len()).position(|window| window == find.as_bytes()).unwrap();
        bytes[at..at + find.len()].copy_from_slice(replace.as_bytes());
        std::fs::write(&path, &bytes).unwrap();
        if expected.is_empty() {
            load(&path); // only the model's name
        } else {
            refused(&path, expected);
        }
    }
}

#[test]
fn a_directory_that_does_not_fit_is_one_sentence() {
    let edits: [(&str, &str, &str, &str); 15] = [
        (
            "config.json",
            "LlamaForCausalLM",
            "GPT2LMHeadModel",
            "is a model of the architecture `GPT2LMHeadModel`; Llama (SmolLM2), Qwen2, Qwen2.5 and Qwen3 are supported",
        ),
        (
            "config.json",
            "\"llama3\"",
            "\"yarn\"",
            "has rope scaling of the type `yarn`; `default` and `llama3` are supported",
        ),
        (
            "config.json",
            "\"mlp_bias\": false",
            "\"use_sliding_window\": true",
            "has layers of sliding-window attention; only models whose layers all see the whole text are supported",
        ),
        (
            "config.json",
            "\"mlp_bias\": false",
            "\"layer_types\": [\"full_attention\", \"sliding_attention\"]",
            "has layers of sliding-window attention",
        ),
        (
            "config.json",
            "\"mlp_bias\": false",
            "\"mlp_bias\": true",
            "has no tensor `model.layers.0.mlp.gate_proj.bias`; it is incomplete",
        ),
        ("config.json", "\"silu\"", "\"gelu\"", "has hidden_act `gelu`; only `silu` is supported"),
        (
            "config.json",
            "\"hidden_size\": 16",
            "\"hidden_size\": 32",
            "has the shape [264, 16] where the config wants [264, 32]",
        ),
        (
            "config.json",
            "\"hidden_size\": 16",
            "\"hidden_size\": \"x\"",
            "cannot be used (invalid type: string \"x\", expected i64 at line",
        ),
        (
            "config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "has no tensor `model.layers.2.input_layernorm.weight`; it is incomplete",
        ),
        (
            "config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            "has the tensor `model.layers.1.input_layernorm.weight` (and 8 others) that a model with its config does not have",
        ),
        (
            "config.json",
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 3",
            "num_key_value_heads 3 does not divide num_attention_heads 4",
        ),
        ("config.json", "{", "[", "is not a model's config"),
        (
            "model.safetensors.index.json",
            "model-00002",
            "../model-00002",
            "names the shard `../model-00002-of-00002.safetensors`, which is not a file beside it",
        ),
        (
            "model.safetensors.index.json",
            "model-00002",
            "model-00003",
            "is not there; a model's directory needs its weights as safetensors",
        ),
        ("tokenizer.json", "{", "(", "is not a tokenizer"),
    ];
    for (file, find, replace, expected) in edits {
        let directory = copy_of("fixtures/llm/tiny-llama3");
        let path = directory.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(find), "{file} has no {find}");
        std::fs::write(&path, text.replace(find, replace)).unwrap();
        refused(directory.path(), expected);
    }
    let directory = copy_of("fixtures/llm/tiny-llama");
    let path = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    refused(directory.path(), "model.safetensors: is truncated or no safetensors file");
    std::fs::remove_file(&path).unwrap();
    refused(
        directory.path(),
        "model.safetensors: is not there; a model's directory needs its weights as safetensors",
    );
}

#[test]
fn what_cannot_be_generated_is_one_sentence() {
    let llm = load("fixtures/llm/tiny-llama");
    let refusal = |prompts: &[Vec<i64>], sampling: &Sampling| {
        generate(&llm.model, prompts, &[], 0, sampling, &mut |_, _| ()).unwrap_err().to_string()
    };
    let prompts = [vec![1; 100], vec![1; 101]];
    assert_eq!(
        refusal(&prompts, &greedy(28)),
        "input `prompts[1]`: has 101 tokens, and with max_new_tokens 28 it exceeds the model's context of 128; shorten either"
    );
    assert_eq!(run(&llm, &prompts, &[], &greedy(27)).tokens[1].len(), 27);
    assert_eq!(
        refusal(&[vec![]], &greedy(1)),
        "input `prompts[0]`: is empty; a prompt needs one token at least"
    );
    assert_eq!(
        refusal(&[vec![3, 264]], &greedy(1)),
        "`prompts[0]`[1] is 264; it must be at least 0 and below 264"
    );
    let hot = Sampling { temperature: -1., ..greedy(1) };
    assert_eq!(refusal(&[vec![1]], &hot), "option `temperature`: is -1; it must be a number, 0 or more");
    let none = Sampling { top_p: 0., ..greedy(1) };
    assert_eq!(refusal(&[vec![1]], &none), "option `top_p`: is 0; it must be above 0 and at most 1");
    assert!(run(&llm, &[], &[], &greedy(4)).tokens.is_empty());
    assert_eq!(run(&llm, &[vec![1]], &[], &greedy(0)).tokens, [[0; 0]]);

    let _ = tch::no_grad(|| llm.model.parameters()[0].1.shallow_clone().fill_(f64::NAN));
    let diverged = "input `logits`: are not finite; the model's weights are broken or have diverged";
    assert_eq!(refusal(&[vec![1]], &greedy(1)), diverged);
    assert_eq!(refusal(&[vec![1]], &Sampling { temperature: 1., ..greedy(1) }), diverged);
}

#[test]
fn a_conversation_without_a_template_is_one_sentence() {
    let directory = copy_of("fixtures/llm/tiny-llama");
    std::fs::remove_file(directory.path().join("chat_template.jinja")).unwrap();
    let tokenizer = Tokenizer::from_directory(directory.path()).unwrap();
    let error = tokenizer.chat(&[Message::new(Role::User, "hi")]).unwrap_err().to_string();
    assert!(error.ends_with("has no chat template; use an instruction-tuned model"), "{error}");
    assert!(tokenizer.decode(&[-1]).unwrap_err().to_string().starts_with("`tokens`[0] is -1"));
}

// ---- what the tests share ----

/// One random model of each family, and Llama in three forms.
const TINY: [&str; 5] = ["tiny-llama", "tiny-llama-bias", "tiny-llama3", "tiny-qwen2", "tiny-qwen3"];

const MODEL: &str = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// One copy for all tests; the lock also keeps them from fighting over the cores.
fn smollm2() -> MutexGuard<'static, Llm> {
    static LLM: LazyLock<Mutex<Llm>> = LazyLock::new(|| Mutex::new(load(MODEL)));
    assert!(Path::new(MODEL).exists(), "{MODEL} is not there: run ./setup");
    LLM.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn load(path: impl AsRef<Path>) -> Llm {
    Llm::load(path.as_ref(), Device::Cpu, Kind::Float).unwrap()
}

fn refusal(path: &Path) -> String {
    Llm::load(path, Device::Cpu, Kind::Float).err().expect("it loaded").to_string()
}

fn refused(path: &Path, expected: &str) {
    let error = refusal(path);
    assert!(error.contains(expected), "{error}\nwhere this was expected: {expected}");
    assert!(!error.contains('\n'), "{error}");
}

fn greedy(max_new_tokens: usize) -> Sampling {
    Sampling { temperature: 0., top_p: 1., top_k: None, max_new_tokens, seed: 0, fused: true }
}

fn run(llm: &Llm, prompts: &[Vec<i64>], stop: &[i64], sampling: &Sampling) -> Generation {
    generate(&llm.model, prompts, stop, llm.tokenizer.pad_token(), sampling, &mut |_, _| ()).unwrap()
}

/// With a cache and without, and the same number of rows left after every step.
fn both(model: &Model, prompts: &[Vec<i64>], stop: &[i64], sampling: &Sampling) -> (Generation, Generation) {
    let (mut steps, mut uncached_steps) = (Vec::new(), Vec::new());
    let with =
        generate(model, prompts, stop, 0, sampling, &mut |step, left| steps.push((step, left))).unwrap();
    let mut progress = |step, left| uncached_steps.push((step, left));
    let without = generate_uncached(model, prompts, stop, 0, sampling, &mut progress).unwrap();
    assert_eq!(steps, uncached_steps);
    for (with, without) in with.logp.iter().flatten().zip(without.logp.iter().flatten()) {
        assert!((with - without).abs() < 1e-4, "drawn with {with}, without a cache with {without}");
    }
    let logp = with.logp.clone(); // which the order of summation may change in its last bits
    (with, Generation { logp, ..without })
}

fn pad(text: &[i64], left: usize, width: usize, filler: i64) -> Vec<i64> {
    let mut row = vec![filler; width];
    row[left..left + text.len()].copy_from_slice(text);
    row
}

fn rows(rows: &[&Vec<i64>]) -> Tensor {
    Tensor::from_slice2(rows)
}

fn full(batch: i64, length: usize) -> Tensor {
    Tensor::ones([batch, length as i64], (Kind::Bool, Device::Cpu))
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).contiguous()).unwrap()
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor).unwrap()
}

/// The largest absolute difference.
fn largest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f64::max)
}

fn fnv1a(tokens: &[i64]) -> u64 {
    let bytes = tokens.iter().flat_map(|&token| (token as u32).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn copy_of(directory: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(directory).unwrap() {
        let from: PathBuf = file.unwrap().path();
        std::fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
    }
    copy
}

fn read<T: serde::de::DeserializeOwned>(path: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SmolLm2 {
    prompts: Vec<Prompt>,
    strings: Vec<Text>,
    chat: Vec<Chat>,
    gsm8k: std::collections::BTreeMap<String, Tokens>,
}

impl SmolLm2 {
    fn read() -> Self {
        let fixture: Self = read("fixtures/llm/smollm2.json");
        assert_eq!((fixture.prompts.len(), fixture.chat.len(), fixture.gsm8k.len()), (3, 2, 2));
        assert!(fixture.strings.len() > 30 && fixture.prompts.iter().all(|prompt| prompt.greedy.len() == 48));
        fixture
    }
}

#[derive(Deserialize)]
struct Prompt {
    tokens: Vec<i64>,
    every_32nd_logit: Vec<f64>,
    top_tokens: Vec<i64>,
    top_logits: Vec<f64>,
    greedy: Vec<i64>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    tokens: Vec<i64>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<RoleAndContent>,
    tokens: Vec<i64>,
}

impl Chat {
    fn messages(&self) -> Vec<Message> {
        let role = |name: &str| {
            [Role::System, Role::User, Role::Assistant].into_iter().find(|role| role.name() == name).unwrap()
        };
        self.messages.iter().map(|message| Message::new(role(&message.role), &message.content)).collect()
    }
}

#[derive(Deserialize)]
struct RoleAndContent {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: usize,
    fnv1a: String,
}

#[derive(Deserialize)]
struct Tiny {
    tokens: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<bool>>,
    last_logits: Vec<Vec<f64>>,
    chat: Chat,
    #[serde(default)]
    strings: Vec<Text>,
}
