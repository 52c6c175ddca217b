//! What is done to a model beside running it: saving, adapters, checkpointed gradients, fetching from the hub.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::python;
use grpo_oracle::hub::{self, Hub};
use grpo_oracle::llm::{Llm, Lora, Message, Model, Role, Sampling, TOKENIZER_FILES, generate};
use grpo_oracle::options;
use grpo_oracle::torch::optim;
use grpo_oracle::train::optim::Optimizer;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, no_grad};
use tempfile::TempDir;

/// A random model of each family, Llama in three forms, the Qwens also as GGUF files.
const TINY: [&str; 7] = [
    "tiny-llama",
    "tiny-llama-bias",
    "tiny-llama3",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-qwen2.gguf",
    "tiny-qwen3.gguf",
];
const MODEL: &str = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

// ---- saving ----

#[test]
fn a_saved_model_is_the_same_when_loaded_again() {
    let folder = TempDir::new().unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        for name in TINY {
            let llm = Llm::load(&fixture(name), Device::Cpu, kind).unwrap();
            let path = folder.path().join(name);
            llm.save(&path).unwrap();
            let again = Llm::load(&path, Device::Cpu, kind).unwrap();
            assert_eq!(llm.model.config(), again.model.config(), "{name}");
            assert_eq!(llm.model.parameters(), again.model.parameters(), "{name}");
            let (a, b) = (&llm.tokenizer, &again.tokenizer);
            assert_eq!((a.stop_tokens(), a.pad_token()), (b.stop_tokens(), b.pad_token()), "{name}");
            for chat in chats() {
                assert_eq!(a.chat(&chat).unwrap(), b.chat(&chat).unwrap(), "{name}");
            }
            for text in TEXTS {
                assert_eq!(a.encode(text).unwrap(), b.encode(text).unwrap(), "{name}: {text:?}");
            }
            if !name.ends_with(".gguf") {
                for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
                    let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
                    assert!(read(&fixture(name)) == read(&path), "{name}: {file} is not as it was");
                }
            }
        }
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), TINY.len(), "nothing is left beside the models: {left:?}");
}

#[test]
fn only_what_was_saved_here_is_replaced() {
    let folder = TempDir::new().unwrap();
    let llm = tiny("tiny-llama", Kind::Float);
    let refused = |path: &Path, expected: &str| {
        let message = llm.save(path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(message.ends_with("name another directory") && !message.contains('\n'), "{message}");
    };
    // A model that somebody else made.
    let theirs = folder.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    for file in fs::read_dir(fixture("tiny-llama")).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, theirs.join(path.file_name().unwrap())).unwrap();
    }
    refused(&theirs, "holds `model.safetensors`, which was not saved here");
    fs::remove_file(theirs.join("model.safetensors")).unwrap();
    refused(&theirs, "holds a model, which was not saved here");
    assert!(theirs.join("config.json").is_file());
    // Our own, alone and with a file of somebody's in it.
    let ours = folder.path().join("ours");
    fs::create_dir(&ours).unwrap();
    llm.save(&ours).unwrap();
    tiny("tiny-llama3", Kind::Float).save(&ours).unwrap();
    assert!(!load(&ours).model.config().tie_word_embeddings, "the second model has replaced the first");
    fs::write(ours.join("notes.txt"), "mine").unwrap();
    refused(&ours, "holds `notes.txt`, which was not saved here");
    assert_eq!(fs::read_to_string(ours.join("notes.txt")).unwrap(), "mine");
    fs::write(folder.path().join("file"), "").unwrap();
    let message = llm.save(&folder.path().join("file")).unwrap_err().to_string();
    assert!(message.contains("is not a directory"), "{message}");
}

/// Runs tests/python/check_saved.py where there is a Python with transformers.
#[test]
fn transformers_loads_what_was_saved() {
    let Some(python) = python::with("transformers") else { return };
    let own = TempDir::new().unwrap();
    let folder = std::env::var_os("SAVED_MODELS").map_or(own.path().to_owned(), PathBuf::from);
    fs::create_dir_all(&folder).unwrap();
    for name in TINY {
        expect(&tiny(name, Kind::Float), &folder, name, 2e-5);
        expect(&tiny(name, Kind::BFloat16), &folder, &format!("{name}-bf16"), 0.5);
    }
    if Path::new(MODEL).exists() {
        expect(&load(Path::new(MODEL)), &folder, "smollm2", 1e-3);
    }
    for name in ["tiny-llama", "tiny-qwen3"] {
        let mut llm = tiny(name, Kind::Float);
        llm.model.add_lora(&lora(), 3).unwrap();
        shake(&llm.model.adapters(), 0.2);
        expect(&llm, &folder, &format!("{name}-merged"), 2e-5);
        let adapters = format!("{name}-adapters");
        llm.save_adapters(&folder.join(&adapters), name).unwrap();
        let extra = json!({"adapters_of": name});
        describe(&llm, &folder, &adapters, 2e-5, extra);
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/check_saved.py");
    let output = Command::new(python).arg(script).arg(&folder).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().count(), 2 * TINY.len() + 4 + usize::from(Path::new(MODEL).exists()), "{said}");
}

fn expect(llm: &Llm, folder: &Path, name: &str, tolerance: f64) {
    llm.save(&folder.join(name)).unwrap();
    describe(llm, folder, name, tolerance, json!({}));
}

/// What transformers must find, beside a saved model.
fn describe(llm: &Llm, folder: &Path, name: &str, tolerance: f64, mut expected: Value) {
    let (tokens, mask) = batch();
    let logits = no_grad(|| llm.model.head(&llm.model.hidden(&tokens, &mask)).contiguous());
    let path = folder.join(format!("{name}.expected.safetensors"));
    Tensor::write_safetensors(&[("logits", &logits)], path).unwrap();
    let chats = chats().map(|chat| {
        let messages: Vec<_> =
            chat.iter().map(|m| json!({"role": m.role.name(), "content": m.content})).collect();
        json!({"messages": messages, "tokens": llm.tokenizer.chat(&chat).unwrap()})
    });
    let texts = TEXTS.map(|text| json!({"text": text, "tokens": llm.tokenizer.encode(text).unwrap()}));
    expected["tokens"] = json!(Vec::<Vec<i64>>::try_from(&tokens).unwrap());
    expected["attention_mask"] = json!(Vec::<Vec<bool>>::try_from(&mask).unwrap());
    expected["chats"] = json!(chats);
    expected["texts"] = json!(texts);
    expected["tolerance"] = json!(tolerance);
    fs::write(folder.join(format!("{name}.expected.json")), expected.to_string()).unwrap();
}

// ---- adapters ----

#[test]
fn an_adapter_computes_the_formula() {
    // The whole of one map by the oracle-checked formula, and by the model: logits of a model with one adapted map.
    for kind in [Kind::Float, Kind::Double] {
        let mut llm = tiny("tiny-qwen2", kind);
        let only = Lora { target_modules: vec!["model.layers.1.mlp.down_proj".into()], ..lora() };
        llm.model.add_lora(&only, 1).unwrap();
        shake(&llm.model.adapters(), 0.2);
        let pair = llm.model.adapters();
        let weight = parameter(&llm.model, "model.layers.1.mlp.down_proj.weight");
        let merged = parameter(&llm.model.merged(), "model.layers.1.mlp.down_proj.weight");
        let x = Tensor::linspace(-1., 1., 24 * 5, (kind, Device::Cpu)).view([5, 24]);
        let options = options::Lora { alpha: only.alpha, rank: Some(only.rank as usize) };
        let formula = no_grad(|| optim::lora(&x, &weight, &pair[0].1, &pair[1].1, &options).unwrap());
        let tolerance = if kind == Kind::Double { 1e-14 } else { 1e-6 };
        assert!(difference(&formula, &x.matmul(&merged.tr())) < tolerance);
        assert!(difference(&formula, &x.matmul(&weight.tr())) > 1e-2, "the adapter does something");
    }
}

#[test]
fn adapters_and_merged_weights_give_the_same() {
    let (tokens, mask) = batch();
    for name in TINY {
        let mut llm = tiny(name, Kind::Double);
        let logits = |model: &Model| no_grad(|| model.head(&model.hidden(&tokens, &mask)));
        let before = logits(&llm.model);
        llm.model.add_lora(&lora(), 5).unwrap();
        assert_eq!(llm.model.adapters().len(), 2 * 2 * 7);
        assert_eq!(before, logits(&llm.model), "{name}: B is 0, so nothing has changed yet");
        shake(&llm.model.adapters(), 0.2);
        let adapted = logits(&llm.model);
        assert!(difference(&before, &adapted) > 1e-2, "{name}: the adapters do something");
        let off = difference(&adapted, &logits(&llm.model.merged()));
        // The rotary embedding rounds to f32 whatever the model's kind.
        assert!(off < 1e-5, "{name}: {off:e}");
        assert_eq!(before, logits(&llm.model.base()), "{name}: the base is as it was");

        let sampling =
            Sampling { temperature: 1., top_p: 1., top_k: None, max_new_tokens: 20, seed: 4, fused: true };
        let sampled = |model: &Model| {
            generate(model, &[vec![1, 2, 3], vec![4]], &[], 0, &sampling, &mut |_, _| ()).unwrap()
        };
        assert_eq!(sampled(&llm.model), sampled(&llm.model.merged()), "{name}");
        assert_ne!(sampled(&llm.model), sampled(&llm.model.base()), "{name}");
    }
}

#[test]
fn only_adapters_are_trained() {
    let (tokens, mask) = batch();
    let mut llm = tiny("tiny-llama-bias", Kind::BFloat16);
    llm.model.set_trainable(true);
    let two = Lora { target_modules: vec!["q_proj".into(), "mlp.up_proj".into()], ..lora() };
    llm.model.add_lora(&two, 5).unwrap();
    let names: Vec<String> = llm.model.trainable().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 2 * 2 * 2);
    assert_eq!(names[0], "model.layers.0.self_attn.q_proj.lora_A.weight");
    assert!(names.iter().all(|name| name.contains("q_proj.lora_") || name.contains("up_proj.lora_")));
    let copies = |named: Vec<(String, Tensor)>| -> Vec<Tensor> {
        named.into_iter().map(|(_, tensor)| tensor.detach().copy()).collect()
    };
    let (base, adapters) = (copies(llm.model.parameters()), copies(llm.model.adapters()));
    let options = options::AdamW { lr: 0.01, weight_decay: 0.1, ..options::AdamW::torch() };
    let mut optimizer = Optimizer::new(llm.model.trainable().into_iter().map(|named| named.1), options, true);
    for _ in 0..2 {
        optimizer.zero_grad();
        llm.model.hidden(&tokens, &mask).square().sum(Kind::Float).backward();
        optimizer.step().unwrap();
    }
    assert!(llm.model.parameters().iter().all(|(_, p)| !p.requires_grad() && !p.grad().defined()));
    assert_eq!(base, copies(llm.model.parameters()));
    for ((name, after), before) in llm.model.adapters().into_iter().zip(&adapters) {
        assert_eq!(after.kind(), Kind::Float, "adapters stay in f32 beside weights in bf16");
        assert!(difference(&after, before) > 1e-4, "{name} has not moved");
    }
}

#[test]
fn adapters_are_drawn_as_peft_draws_them() {
    let drawn = |seed: u64| {
        let mut llm = tiny("tiny-llama", Kind::Float);
        llm.model.add_lora(&Lora { rank: 200, ..lora() }, seed).unwrap();
        llm.model.adapters()
    };
    let (one, again, other) = (drawn(1), drawn(1), drawn(2));
    assert_eq!(one, again);
    assert_ne!(one[0].1, other[0].1);
    assert_ne!(one[0].1, one[2].1, "each map draws for itself");
    for (name, tensor) in &one {
        let (largest, std) = (tensor.abs().max().double_value(&[]), tensor.std(true).double_value(&[]));
        if name.contains("lora_B") {
            assert_eq!(largest, 0., "{name}");
        } else {
            // Kaiming with a = sqrt 5 over I inputs: uniform up to 1 / sqrt I.
            let bound = 1. / (tensor.size()[1] as f64).sqrt();
            assert!(largest <= bound && largest > 0.99 * bound, "{name}: {largest} of {bound}");
            assert!((std / (bound / 3f64.sqrt()) - 1.).abs() < 0.05, "{name}: {std}");
        }
    }
}

#[test]
fn adapters_come_back_from_their_directory() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("adapters");
    let mut llm = tiny("tiny-qwen3", Kind::Float);
    let message = llm.save_adapters(&path, "base").unwrap_err().to_string();
    assert!(message.contains("has no adapters"), "{message}");
    for target_modules in [vec!["all-linear".to_owned()], vec!["q_proj".into(), "down_proj".into()]] {
        let mut llm = tiny("tiny-qwen3", Kind::Float);
        let lora = Lora { target_modules, ..lora() };
        llm.model.add_lora(&lora, 8).unwrap();
        shake(&llm.model.adapters(), 0.2);
        llm.save_adapters(&path, "Qwen/tiny").unwrap();
        let mut again = tiny("tiny-qwen3", Kind::Float);
        again.load_adapters(&path).unwrap();
        assert_eq!(again.model.lora(), Some(&lora));
        assert_eq!(again.model.adapters(), llm.model.adapters());
        assert!(again.model.adapters().iter().all(|(_, tensor)| tensor.requires_grad()));
        let twice = again.load_adapters(&path).unwrap_err().to_string();
        assert!(twice.contains("the model has adapters already"), "{twice}");
    }
    // What does not fit leaves the model as it was.
    let refused = |llm: &mut Llm, expected: &str| {
        let message = llm.load_adapters(&path).unwrap_err().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        assert!(llm.model.lora().is_none() && llm.model.adapters().is_empty());
    };
    refused(&mut tiny("tiny-llama", Kind::Float), "in the shape");
    let config = path.join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    for (find, replace, expected) in [
        ("\"use_dora\": false", "\"use_dora\": true", "sets use_dora to true, which is not supported"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "sets bias to \"all\""),
        ("LORA", "IA3", "only LORA is supported"),
        ("\"r\"", "\"rr\"", "needs r, lora_alpha"),
        (
            "down_proj",
            "gate_proj",
            "has no tensor `base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight`",
        ),
        (
            "\"down_proj\"",
            "\"q_proj\"",
            "has the tensor `base_model.model.model.layers.0.mlp.down_proj.lora_A.weight`",
        ),
        ("\"down_proj\"", "\"sideways\"", "names `sideways`"),
        ("{", "[", "is no adapter's config"),
    ] {
        assert!(text.contains(find), "{find}");
        fs::write(&config, text.replacen(find, replace, 1)).unwrap();
        refused(&mut llm, expected);
    }
}

#[test]
fn an_impossible_adapter_is_one_sentence() {
    let mut llm = tiny("tiny-llama", Kind::Float);
    let mut refused = |lora: Lora, expected: &str| {
        let message = llm.model.add_lora(&lora, 0).unwrap_err().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message}");
    };
    refused(Lora { rank: 0, ..lora() }, "option `lora_rank`: is 0; it must be at least 1");
    refused(Lora { alpha: f64::NAN, ..lora() }, "option `lora_alpha`: is NaN");
    refused(Lora { target_modules: vec![], ..lora() }, "option `target_modules`: names no linear map");
    refused(Lora { target_modules: vec!["proj".into()], ..lora() }, "names `proj`; there are q_proj, k_proj");
    llm.model.add_lora(&lora(), 0).unwrap();
    let message = llm.model.add_lora(&lora(), 0).unwrap_err().to_string();
    assert!(message.contains("has adapters already"), "{message}");
}

// ---- checkpointed gradients ----

#[test]
fn checkpointed_gradients_are_the_plain_ones() {
    let (tokens, mask) = batch();
    let visible = mask.unsqueeze(1).logical_or(&Tensor::eye(mask.size()[1], (Kind::Bool, Device::Cpu)));
    let positions = (mask.cumsum(1, Kind::Int64) - 1).clamp_min(0);
    let real_tokens = tokens.masked_fill(&mask.logical_not(), 0);
    let weights = Tensor::linspace(-1., 1., 264, (Kind::Float, Device::Cpu));
    let loss = |model: &Model, hidden: &Tensor| {
        let logp = model.head(hidden).to_kind(Kind::Float).log_softmax(-1, Kind::Float).narrow(-1, 0, 264);
        (logp * &weights).index(&[Some(&mask)]).sum(Kind::Float)
    };
    for name in TINY {
        for kind in [Kind::Float, Kind::BFloat16] {
            for adapted in [false, true] {
                let mut llm = tiny(name, kind);
                if adapted {
                    llm.model.add_lora(&lora(), 5).unwrap();
                    shake(&llm.model.adapters(), 0.2);
                }
                let model = &llm.model;
                model.set_trainable(true);
                let gradients = |run: &dyn Fn()| -> Vec<Tensor> {
                    model.trainable().iter().for_each(|(_, p)| p.shallow_clone().zero_grad());
                    run();
                    model.trainable().iter().map(|(_, p)| p.grad().copy()).collect()
                };
                let plain = gradients(&|| loss(model, &model.hidden(&tokens, &mask)).backward());
                let checkpointed = gradients(&|| {
                    let run = model.checkpointed(&tokens, &mask);
                    loss(model, run.hidden()).backward();
                    run.backward().unwrap();
                });
                let places = gradients(&|| {
                    let run = model.checkpointed_at(&real_tokens, &positions, &visible);
                    loss(model, run.hidden()).backward();
                    run.backward().unwrap();
                });
                let plain_places = gradients(&|| {
                    loss(model, &model.hidden_at(&real_tokens, &positions, &visible)).backward();
                });
                for (a, b) in [(&plain, &checkpointed), (&plain_places, &places)] {
                    for ((name_of, _), (a, b)) in model.trainable().iter().zip(a.iter().zip(b)) {
                        assert!(a.abs().max().double_value(&[]) > 0., "{name}: {name_of} has no gradient");
                        assert_eq!(a, b, "{name}, {kind:?}, adapters {adapted}: {name_of}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_backward_pass_without_a_loss_is_refused() {
    let llm = tiny("tiny-llama", Kind::Float);
    llm.model.set_trainable(true);
    let (tokens, mask) = batch();
    let message = llm.model.checkpointed(&tokens, &mask).backward().unwrap_err().to_string();
    assert_eq!(message, "input `hidden`: has no gradient yet; call backward on a loss of it first");
}

// ---- the optimiser ----

#[test]
fn the_optimiser_steps_as_the_formula_does() {
    // So many numbers that they go in several threads, with an end that fills no vector.
    for (count, fused) in [(9, true), (9, false), (300_007, true)] {
        let start = || Tensor::linspace(-2., 2., count, (Kind::Double, Device::Cpu));
        let options = options::AdamW { lr: 0.03, beta1: 0.8, beta2: 0.95, eps: 1e-6, weight_decay: 0.1 };
        let mut param = start().set_requires_grad(true);
        let mut optimizer = Optimizer::new([param.shallow_clone()], options, fused);
        let (mut formula, mut m, mut v) = (start(), start().zeros_like(), start().zeros_like());
        for step in 1..=20 {
            param.zero_grad();
            (&param * step as f64).sin().sum(Kind::Double).backward();
            optimizer.step().unwrap();
            let grad = param.grad();
            let after = optim::adamw(&formula, &grad, &m, &v, &Tensor::from(step as f64), &options).unwrap();
            (formula, m, v) = (after.param, after.m, after.v);
            let off = difference(&param, &formula);
            assert!(off < 1e-13, "step {step} of {count} numbers: {off:e}");
        }
    }
}

#[test]
fn coarse_weights_gather_small_steps_in_f32() {
    for (kind, fused) in [(Kind::BFloat16, true), (Kind::BFloat16, false), (Kind::Half, true)] {
        let start = Tensor::linspace(1., 2., 5, (kind, Device::Cpu));
        let own = |kind: Kind| start.to_kind(kind).copy().set_requires_grad(true);
        let (mut coarse, mut fine) = (own(kind), own(Kind::Float));
        let options = options::AdamW { lr: 1e-4, weight_decay: 0.1, ..options::AdamW::torch() };
        let mut optimizers =
            [&coarse, &fine].map(|param| Optimizer::new([param.shallow_clone()], options, fused));
        for step in 0..200 {
            for param in [&mut coarse, &mut fine] {
                param.zero_grad();
                // A gradient that both kinds hold exactly.
                (&*param * (1 + step % 3)).sum(Kind::Float).backward();
            }
            optimizers.iter_mut().for_each(|optimizer| optimizer.step().unwrap());
            assert_eq!(coarse, fine.to_kind(kind), "step {step}");
            assert!(step > 0 || coarse == start, "one step is less than the kind can tell apart");
        }
        assert!(difference(&coarse, &start) > 0.01, "two hundred steps are not");
        assert_eq!(coarse.kind(), kind);
    }
}

#[test]
fn the_norm_of_coarse_gradients_is_taken_in_f32() {
    let param = Tensor::ones([5000], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
    (&param * 1.5).sum(Kind::Float).backward();
    let norm =
        Optimizer::new([param.shallow_clone()], options::AdamW::torch(), true).clip_grad_norm(1e9).unwrap();
    // 1.5 sqrt 5000 = 106.066, for which bf16 has 106 and 106.5.
    assert!((norm - 106.066).abs() < 1e-3, "{norm}");
}

// ---- the hub ----

#[test]
fn a_model_comes_from_the_hub_once() {
    for name in ["tiny-llama3", "tiny-qwen3"] {
        let server = Server::start(name, None);
        let cache = TempDir::new().unwrap();
        let hub = server.hub(&cache);
        let path = hub.model("someone/tiny", &TOKENIZER_FILES).unwrap();
        same_model(&path, name);
        let asked = server.asked();
        assert!(
            asked.iter().all(|line| !line.contains("README")),
            "only what is needed is fetched: {asked:?}"
        );
        // All of it is there now, and nobody is asked any more.
        assert_eq!(hub.model("someone/tiny", &TOKENIZER_FILES).unwrap(), path);
        assert_eq!(server.asked(), asked);
        let offline = Hub { endpoint: Some("http://127.0.0.1:1".into()), offline: Some(true), ..hub };
        assert_eq!(offline.model("someone/tiny", &TOKENIZER_FILES).unwrap(), path);
    }
}

#[test]
fn a_broken_download_is_gone_on_with() {
    // The server hangs up after 5000 bytes of any file, time and again.
    let server = Server::start("tiny-qwen3", Some(5000));
    let cache = TempDir::new().unwrap();
    let hub = server.hub(&cache);
    let mut tries = 1;
    let path = loop {
        match hub.model("someone/tiny", &TOKENIZER_FILES) {
            Ok(path) => break path,
            Err(error) => {
                let message = error.to_string();
                assert!(message.starts_with("someone/tiny could not be fetched") && !message.contains('\n'));
            }
        }
        tries += 1;
        assert!(tries < 10);
    };
    same_model(&path, "tiny-qwen3");
    let ranges = server.asked().iter().filter(|line| line.contains("model.safetensors bytes=")).count();
    assert!(ranges > 5, "{:?}", server.asked());
}

#[test]
fn a_download_without_its_last_step_says_what_to_delete() {
    let server = Server::start("tiny-llama", None);
    let cache = TempDir::new().unwrap();
    let blobs = cache.path().join("models--someone--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::copy(fixture("tiny-llama").join("config.json"), blobs.join("config.part")).unwrap();
    let message = server.hub(&cache).model("someone/tiny", &TOKENIZER_FILES).unwrap_err().to_string();
    assert!(message.ends_with("delete the .part files below the cache's blobs and try again"), "{message}");
    fs::remove_file(blobs.join("config.part")).unwrap();
    same_model(&server.hub(&cache).model("someone/tiny", &TOKENIZER_FILES).unwrap(), "tiny-llama");
}

#[test]
fn offline_says_what_is_missing() {
    let server = Server::start("tiny-llama3", None);
    let cache = TempDir::new().unwrap();
    let online = server.hub(&cache);
    let offline = Hub { offline: Some(true), ..online.clone() };
    let refusal = || offline.model("someone/tiny", &TOKENIZER_FILES).unwrap_err().to_string();
    assert_eq!(
        refusal(),
        "someone/tiny is not whole in the hub's cache, which lacks config.json; unset HF_HUB_OFFLINE to fetch it, or \
         set HF_HOME to where it is kept"
    );
    assert!(server.asked().is_empty());
    let path = online.model("someone/tiny", &TOKENIZER_FILES).unwrap();
    fs::remove_file(path.join("model-00002-of-00002.safetensors")).unwrap();
    assert!(refusal().contains("lacks model-00002-of-00002.safetensors;"), "{}", refusal());
    // Online, the missing file alone is fetched.
    let before = server.asked().len();
    same_model(&online.model("someone/tiny", &TOKENIZER_FILES).unwrap(), "tiny-llama3");
    let asked = server.asked().split_off(before);
    assert!(asked.iter().all(|line| line.contains("/api/") || line.contains("model-00002")), "{asked:?}");
}

#[test]
fn what_the_hub_does_not_have_is_one_sentence() {
    let server = Server::start("tiny-llama", None);
    let cache = TempDir::new().unwrap();
    let message = server.hub(&cache).model("someone/else", &TOKENIZER_FILES).unwrap_err().to_string();
    assert!(message.starts_with("someone/else could not be fetched from the hub ("), "{message}");
    assert!(message.contains("404") && message.contains("there is no such directory here"), "{message}");
    for id in ["org/name", "Qwen/Qwen2.5-0.5B-Instruct", "HuggingFaceTB/SmolLM2_x"] {
        assert!(hub::is_id(Path::new(id)), "{id}");
    }
    for path in ["name", "/org/name", "./name", "../name", "a/b/c", "models/x.gguf", "org/", "a b/c"] {
        assert!(!hub::is_id(Path::new(path)), "{path}");
    }
}

fn same_model(path: &Path, name: &str) {
    let (fetched, original) = (load(path), tiny(name, Kind::Float));
    assert_eq!(fetched.model.parameters(), original.model.parameters());
    let chat = &chats()[0];
    assert_eq!(fetched.tokenizer.chat(chat).unwrap(), original.tokenizer.chat(chat).unwrap());
}

/// A hub that has one of the fixtures as `someone/tiny`, and a file that nobody needs.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `most`: how many bytes it sends before it hangs up.
    fn start(name: &str, most: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (folder, asked) = (fixture(name), Arc::<Mutex<Vec<String>>>::default());
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                answer(connection.unwrap(), &folder, most, &log);
            }
        });
        Self { address, asked }
    }

    fn hub(&self, cache: &TempDir) -> Hub {
        Hub {
            endpoint: Some(self.address.clone()),
            cache: Some(cache.path().to_owned()),
            progress: false,
            offline: Some(false),
        }
    }

    /// What has been asked for, each with its range.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(mut connection: TcpStream, folder: &Path, most: Option<usize>, log: &Mutex<Vec<String>>) {
    let lines: Vec<String> = BufReader::new(connection.try_clone().unwrap())
        .lines()
        .map(|line| line.unwrap())
        .take_while(|line| !line.is_empty())
        .collect();
    let path = lines[0].split(' ').nth(1).unwrap();
    let range = lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: ").map(str::to_owned));
    log.lock().unwrap().push(format!("{path} {}", range.clone().unwrap_or_default()));
    let names = || fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    if path == "/api/models/someone/tiny/revision/main" {
        let files: Vec<Value> =
            names().chain(["README.md".into()]).map(|name| json!({"rfilename": name})).collect();
        let body = json!({"siblings": files, "sha": "0123abcd"}).to_string();
        let length = body.len();
        write!(connection, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").unwrap();
        return;
    }
    let file =
        path.strip_prefix("/someone/tiny/resolve/main/").filter(|file| names().any(|name| name == *file));
    let Some(file) = file else {
        write!(connection, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .unwrap();
        return;
    };
    let content = fs::read(folder.join(file)).unwrap();
    let range = range.unwrap();
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap_or(content.len() - 1));
    if first >= content.len() {
        let status = "416 Range Not Satisfiable";
        write!(connection, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        return;
    }
    let part = &content[first..=last];
    write!(
        connection,
        "HTTP/1.1 206 Partial Content\r\nx-repo-commit: 0123abcd\r\netag: \"{file}-tag\"\r\ncontent-range: bytes \
         {first}-{last}/{}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        content.len(),
        part.len()
    )
    .unwrap();
    connection.write_all(&part[..part.len().min(most.unwrap_or(usize::MAX))]).unwrap();
}

// ---- what the tests share ----

const TEXTS: [&str; 5] = [
    "12 boxes, 3.50 each",
    "the end\n\n  of it's the thing!\n",
    "naïve e\u{301} 日本",
    "<|im_start|>x<|im_end|>",
    " ",
];

fn chats() -> [Vec<Message>; 2] {
    let message = |role, text: &str| Message::new(role, text);
    [
        vec![message(Role::User, "What is 17 + 25?")],
        vec![
            message(Role::System, "Answer with a number."),
            message(Role::User, "2 + 2?"),
            message(Role::Assistant, "4"),
            message(Role::User, "And 3 times that?"),
        ],
    ]
}

fn fixture(name: &str) -> PathBuf {
    Path::new("fixtures/llm").join(name)
}

fn load(path: &Path) -> Llm {
    Llm::load(path, Device::Cpu, Kind::Float).unwrap()
}

fn tiny(name: &str, kind: Kind) -> Llm {
    Llm::load(&fixture(name), Device::Cpu, kind).unwrap()
}

fn lora() -> Lora {
    Lora { rank: 3, alpha: 6., target_modules: vec!["all-linear".into()] }
}

/// Moves tensors by fixed amounts up to `size`.
fn shake(tensors: &[(String, Tensor)], size: f64) {
    for (index, (_, tensor)) in tensors.iter().enumerate() {
        let phases = Tensor::arange(tensor.numel() as i64, (Kind::Double, Device::Cpu)) * 1.7 + index as f64;
        let moved = (phases.sin() * size).view(tensor.size().as_slice()).to_kind(tensor.kind());
        let _ = no_grad(|| tensor.shallow_clone().g_add_(&moved));
    }
}

fn parameter(model: &Model, name: &str) -> Tensor {
    model.parameters().into_iter().find(|(other, _)| other == name).unwrap().1
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// Three rows, one padded on the left, one on the right.
fn batch() -> (Tensor, Tensor) {
    let tokens = (Tensor::arange(3 * 12, (Kind::Int64, Device::Cpu)) * 37).remainder(264).view([3, 12]);
    let place = Tensor::arange(12, (Kind::Int64, Device::Cpu));
    let mask = Tensor::stack(&[place.ge(0), place.ge(4), place.lt(9)], 0);
    (tokens, mask)
}
