use grpo_oracle::llm::*;
use std::path::Path;

#[test]
fn smoke() {
    let t = std::time::Instant::now();
    let llm =
        Llm::load(Path::new("models/SmolLM2-135M-Instruct.Q4_1.gguf"), tch::Device::Cpu, tch::Kind::Float)
            .unwrap();
    println!("load {:?}", t.elapsed());
    let prompt = llm.tokenizer.chat(&[Message::new(Role::User, "What is 3 + 4?")]).unwrap();
    println!("{prompt:?} {:?} {}", llm.tokenizer.stop_tokens(), llm.tokenizer.pad_token());
    for (t, p, n) in [(0., 1., 1), (0., 1., 1), (1., 1., 8), (1., 1., 32), (1., 0.9, 32)] {
        let s = Sampling { temperature: t, top_p: p, max_new_tokens: 40, seed: 1 };
        let clock = std::time::Instant::now();
        let mut rows = 0;
        let mut first = 0.;
        let g = generate(
            &llm.model,
            &vec![prompt.clone(); n],
            llm.tokenizer.stop_tokens(),
            llm.tokenizer.pad_token(),
            &s,
            &mut |step, left| {
                rows += left;
                if step == 1 {
                    first = clock.elapsed().as_secs_f64()
                }
            },
        )
        .unwrap();
        let total: usize = g.tokens.iter().map(Vec::len).sum();
        println!(
            "n {n} first {first:.2} {total} tokens in {:?}: {:.0} tokens/s {rows}",
            clock.elapsed(),
            total as f64 / clock.elapsed().as_secs_f64()
        );
        println!("{:?}", llm.tokenizer.decode(&g.tokens[0]).unwrap());
    }
}
